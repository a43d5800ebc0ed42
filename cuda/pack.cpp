#include "cuda/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace wkv::cuda {
namespace {

constexpr int kRun = 8;    // inputs of a lane that lie side by side
constexpr int kLanes = 4;  // lanes that share a step
constexpr int kStep = kRun * kLanes;

}  // namespace

void pack_u8(std::uint8_t* to, const std::uint8_t* codes, int in, unsigned bias,
             std::uint8_t filler) {
  constexpr int kSteps = 2, kBlock = kSteps * kStep;
  const int padded = (in + kBlock - 1) / kBlock * kBlock;
  for (int i = 0; i < padded; ++i) {
    const int block = i / kBlock, step = i % kBlock / kStep, lane = i % kStep / kRun;
    const std::uint8_t code = i < in ? static_cast<std::uint8_t>(codes[i] + bias) : filler;
    to[((block * kLanes + lane) * kSteps + step) * kRun + i % kRun] = code;
  }
}

void pack_u4(std::uint32_t* to, const std::uint8_t* codes, int in) {
  constexpr int kSteps = 4, kBlock = kSteps * kStep;
  const int padded = (in + kBlock - 1) / kBlock * kBlock;
  std::memset(to, 0, static_cast<std::size_t>(padded / kRun) * sizeof *to);
  for (int i = 0; i < padded; ++i) {
    const int block = i / kBlock, step = i % kBlock / kStep, lane = i % kStep / kRun;
    const unsigned code = i < in ? (codes[i / 2] >> (i % 2 * 4)) & 15u : 8u;
    const int bit = i % kRun / 2 * 4 + i % 2 * 16;
    to[(block * kLanes + lane) * kSteps + step] |= code << bit;
  }
}

void pack_scales(std::uint16_t* to, const std::uint16_t* scales, int in) {
  constexpr int kGroup = 32, kPerBlock = 4;
  const int groups = (in + kGroup - 1) / kGroup;
  const int padded = (groups + kPerBlock - 1) / kPerBlock * kPerBlock;
  for (int g = 0; g < padded; ++g) to[g] = g < groups ? scales[g] : std::uint16_t{0};
}

float normaliser(float most) {
  constexpr int kLeast = -100;
  int exponent = 0;
  if (most > 0.0f) static_cast<void>(std::frexp(most, &exponent));
  return std::ldexp(1.0f, -std::max(exponent, kLeast));
}

}  // namespace wkv::cuda
