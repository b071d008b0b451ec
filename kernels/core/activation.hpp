// What an op does to its result before it writes it.
#pragma once

namespace vqlab {

// relu keeps NaN: x <= 0 ? 0 : x.
enum class Activation { none, relu };

}  // namespace vqlab
