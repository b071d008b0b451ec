#include "quantizer.hpp"

namespace vqlab {

#define VQ_QUANTIZER(name) extern const QuantizerEntry quantizer_##name;
#include "quantizers.def"
#undef VQ_QUANTIZER

std::span<const QuantizerEntry* const> quantizers() {
  static constexpr const QuantizerEntry* kEntries[] = {
#define VQ_QUANTIZER(name) &quantizer_##name,
#include "quantizers.def"
#undef VQ_QUANTIZER
  };
  return kEntries;
}

std::unique_ptr<Quantizer> make_quantizer(const QuantizerContext& context) {
  for (const QuantizerEntry* entry : quantizers())
    if (entry->name == context.config.quantizer.kind) return entry->make(context);
  throw Error(ErrorKind::usage, "unknown quantizer '" + context.config.quantizer.kind + "'",
              "`vqlab train --print-config` shows a valid configuration", "quantizer.kind");
}

}  // namespace vqlab
