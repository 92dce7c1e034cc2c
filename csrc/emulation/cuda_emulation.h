// CUDA C++ on the CPU, for tests: what it can do and what it finds is in README.md beside this file.
#pragma once

#include "atomics.h"
#include "host_api.h"
#include "language.h"
#include "numbers.h"
#include "scheduler.h"
#include "warp.h"
