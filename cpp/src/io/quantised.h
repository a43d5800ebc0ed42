// Checkpoints whose matrices are quantised: the tensors of docs/weights.md, seen under the names of
// the matrices that they make up.
#pragma once

#include <memory>

#include "wkv/types.h"

namespace wkv {

/// Whether a tensor's name is that of codes ("head.weight.q").
bool is_quantised_file(const TensorSource& source);

/// The same tensors with `NAME.q` and its scales as one tensor NAME of type int8, mm8 or int4 and
/// the shape of the weight. Nothing is copied. Throws Error(bad_model) that lists every tensor that
/// lacks a part, or has one of another type or shape; get() throws it for scales that are not
/// finite.
std::shared_ptr<const TensorSource> open_quantised(std::shared_ptr<const TensorSource> source);

}  // namespace wkv
