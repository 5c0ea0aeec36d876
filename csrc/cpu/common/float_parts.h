// Floats as sums of bfloat16 numbers, for products in float32 by instructions that multiply
// bfloat16.
//
// A float is exactly the sum of three such parts of 8 bits each: it rounded, what is left of it
// rounded, and the rest. Of the nine products of the parts of two floats six are made; the other
// three are at most 2^-25 of the whole, less than a rounding of a float, of either sign. (Nothing
// is exact any more where a part would be below the least normal number, or where a float within
// 2^-9 of the largest rounds to infinity; of infinities and those the parts add up to NaN.)
#pragma once

#include <cstdint>

namespace attnops::cpu {

constexpr int kFloatParts = 3;
constexpr int kPartProducts = 6;

}  // namespace attnops::cpu
