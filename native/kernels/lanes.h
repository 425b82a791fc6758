#pragma once

// The vector instructions that the kernels are compiled for. Each choice is a namespace with its own Lanes, so that
// one program may hold kernels for several of them. Lanes are the rows of weights that one instruction works on; see
// lanes_plain.h for what each of their functions means.

#if defined(DROID_KERNELS_PLAIN)
#include "kernels/lanes_plain.h"
#elif defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(DROID_KERNELS_AVX2)
#include "kernels/lanes_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "kernels/lanes_avx2.h"
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include "kernels/lanes_neon.h"
#else
#include "kernels/lanes_plain.h"
#endif
