// The part of Python's pickle format that tensors are saved in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "wkv/types.h"

namespace wkv {

/// What a pickle can become here: data, never code. Names of classes and functions (`global`) are
/// only compared with a list. A few that build tensors and containers have a meaning; a class
/// outside the list can be "instantiated" as a `record`, an inert pair of its name and its state.
/// `opaque` stands for values of no interest (sets, dtypes, devices, long integers, bytes).
enum class PickleKind : std::uint8_t {
  none,
  boolean,
  integer,
  real,
  text,
  global,
  tuple,
  list,
  dict,
  storage,
  tensor,
  record,
  opaque,
};

/// A value; containers and tensors are indices into the PickleHeap, so sharing and cycles cost
/// nothing and nothing is ever destroyed recursively.
struct PickleValue {
  PickleKind kind = PickleKind::none;
  std::uint32_t node = 0;  ///< index of the kind's vector in the heap; length of a text
  union {
    std::int64_t integer = 0;
    double real;
    const char* chars;
  };

  std::string_view text() const noexcept { return {chars, node}; }
  bool is_text(std::string_view s) const noexcept {
    return kind == PickleKind::text && text() == s;
  }
};

struct PickleGlobal {
  std::string_view module;
  std::string_view name;
  bool known = false;  ///< on the list
};

/// A torch storage as the pickle names it; its bytes lie elsewhere.
struct PickleStorage {
  DType dtype = DType::automatic;  ///< automatic: bytes without a type, or a type we do not know
  std::string_view stored_dtype;   ///< the name of an unknown type
  std::string_view key;            ///< of the record that holds the bytes
  std::int64_t numel = 0;          ///< elements; bytes if `dtype` is automatic
  std::int64_t offset = 0;         ///< of a view into the record, in elements (old files)
  std::int64_t record_numel = 0;   ///< elements of the whole record
};

struct PickleTensor {
  std::uint32_t storage = 0;
  DType dtype = DType::automatic;
  std::string_view stored_dtype;
  std::int64_t offset = 0;  ///< in elements
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
};

struct PickleRecord {
  std::uint32_t type = 0;  ///< a global
  PickleValue state;
};

struct PickleHeap {
  std::vector<PickleGlobal> globals;
  std::vector<std::vector<PickleValue>> sequences;  ///< tuples and lists; dicts as k, v, k, v
  std::vector<PickleStorage> storages;
  std::vector<PickleTensor> tensors;
  std::vector<PickleRecord> records;
  std::string_view place;                     ///< of the pickle that ran last, for messages
  std::size_t budget = std::size_t{1} << 22;  ///< container items that may still be made

  /// Throws Error(bad_model) when the budget is spent: a few bytes can copy a list for ever.
  void charge(std::size_t items);
  const std::vector<PickleValue>& items(const PickleValue& v) const { return sequences[v.node]; }
  /// The value of a text key in a dict (the last one, as in Python); null if absent.
  const PickleValue* find(const PickleValue& dict, std::string_view key) const;
  /// The first global outside the list; null if there is none.
  const PickleGlobal* first_unknown() const;
};

/// A place in a pickle, written only when there is a message: "[model.pth] pickle, byte 12: ".
struct PicklePlace {
  std::string_view file;
  std::size_t byte = 0;
};
void append(std::string& to, const PicklePlace& place);

/// "module.name" in quotes, for messages.
std::string global_name(const PickleGlobal& global);

/// Runs one pickle (protocols 2 to 5, without the text opcodes of protocol 0) from bytes[pos] on
/// and moves `pos` behind its STOP. Texts point into `bytes`. Memory is bounded: at most 2^20
/// opcodes and 2^22 container items, under 200 MB in the worst case (a 7B model takes 5e4). Throws
/// Error(bad_model), beginning with `place` and naming the global if something outside the list is
/// called.
PickleValue run_pickle(std::span<const std::byte> bytes, std::size_t& pos, PickleHeap& heap,
                       std::string_view place);

}  // namespace wkv
