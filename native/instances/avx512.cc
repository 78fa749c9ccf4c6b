// The instance for x86-64 with AVX-512 F, BW, DQ and VL. CMakeLists.txt sets the flags.
#include "instance.h"

#include "../formats/fp8_block128.h"
#include "../formats/int4_group32.h"
#include "../ops/decode.h"

namespace earthshine {

const Instance avx512 = {"avx512", decode<Int4Group32>, decode<Fp8Block128>};

}  // namespace earthshine
