// The instance for every processor that the compiler's own defaults target. CMakeLists.txt sets the flags.
#include "instance.h"

#include "../formats/fp8_block128.h"
#include "../formats/int4_group32.h"
#include "../ops/decode.h"

namespace earthshine {

const Instance portable = {"portable", decode<Int4Group32>, decode<Fp8Block128>};

}  // namespace earthshine
