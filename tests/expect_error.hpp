// For tests of bad input: what an Error has to say.
#pragma once

#include <string>

#include "testing.hpp"

namespace vqlab::testing {

// Passes only if action() throws an Error of this kind whose text contains `what`, whose place is `where`,
// and which has a hint.
template <class Action>
void require_error(ErrorKind kind, const std::string& what, const std::string& where, const Action& action) {
  INFO("wanted an error that says: " << what);
  try {
    action();
  } catch (const Error& error) {
    INFO("error: " << error.what() << " (" << error.where() << ")");
    CHECK(int(error.kind()) == int(kind));
    CHECK(std::string(error.what()).find(what) != std::string::npos);
    CHECK(error.where() == where);
    CHECK(!error.hint().empty());
    return;
  }
  FAIL("nothing was thrown");
}

}  // namespace vqlab::testing
