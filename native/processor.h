// What this processor and operating system offer, asked once.
#pragma once

namespace earthshine {

// Why an instruction set can't run here: a sentence, or "" where it can.
const char* avx2_refusal();
const char* avx512_refusal();
const char* avx512_bf16_refusal();
const char* amx_refusal();  // asks Linux for the use of tiles, which it grants a process once and for all

}  // namespace earthshine
