// Row-major codes of ops/quantize.h in the order of codec.cuh.
#pragma once

#include <cstdint>

namespace wkv::cuda {

/// One output's bytes [in] -> [ceil(in / 64)][lane 4][step 2][8], each plus `bias` modulo 256
/// (int8's codes become q + 128); what pads the last block is `filler`.
void pack_u8(std::uint8_t* to, const std::uint8_t* codes, int in, unsigned bias,
             std::uint8_t filler);

/// One output's nibbles, input 2j in the low half of byte j, -> [ceil(in / 128)][lane 4][step 4]
/// words of 8: input 2j of a word at bit 4j, input 2j + 1 at bit 16 + 4j. Padded with code 8, which
/// is 0.
void pack_u4(std::uint32_t* to, const std::uint8_t* codes, int in);

/// fp16 scales of groups of 32 inputs, padded with zeros to whole blocks of 128.
void pack_scales(std::uint16_t* to, const std::uint16_t* scales, int in);

/// A power of two that brings `most` to [1/2, 1), if it is not below 2^-100; of 0 it is 1.
float normaliser(float most);

}  // namespace wkv::cuda
