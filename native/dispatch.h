// Which instance serves.
#pragma once

#include "instances/instance.h"

namespace earthshine {

const Instance* runnable(int32_t index);  // best first; null past the last
const Instance& serving();
const char* refusal(const char* name);  // "" where it can run, null where there is no such name
bool force(const char* name);           // or "auto"; false where it can't run
bool narrow(const char* name);          // hides what is better; "auto" hides nothing; false where it can't run

}  // namespace earthshine
