// The instance for x86-64 with AVX2. CMakeLists.txt sets the flags.
#include "instance.h"

#include "../formats/fp8_block128.h"
#include "../formats/int4_group32.h"
#include "../ops/decode.h"

namespace earthshine {

const Instance avx2 = {"avx2", decode<Int4Group32>, decode<Fp8Block128>};

}  // namespace earthshine
