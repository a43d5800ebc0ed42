#include "io/pickle.h"

#include <bit>
#include <cstring>
#include <unordered_map>

#include "core/check.h"
#include "io/bytes.h"
#include "io/pickle_torch.h"

namespace wkv {
namespace {

using enum PickleKind;

constexpr std::size_t kMaxOpcodes = std::size_t{1} << 20;
constexpr std::uint8_t kMaxProtocol = 5;

enum Opcode : std::uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kEmptyTuple = ')',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

PickleValue simple(PickleKind kind, std::int64_t integer = 0, std::size_t node = 0) {
  PickleValue value;
  value.kind = kind;
  value.node = static_cast<std::uint32_t>(node);
  value.integer = integer;
  return value;
}

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, std::size_t& pos, PickleHeap& heap,
          std::string_view place)
      : bytes_(bytes), pos_(pos), heap_(heap), place_(place) {}

  PickleValue run() {
    for (std::size_t count = 0; count < kMaxOpcodes; ++count) {
      const auto opcode = number<std::uint8_t>();
      if (opcode == kStop) {
        WKV_CHECK(stack_.size() == 1 && marks_.empty(), bad_model, where(), "ends with ",
                  stack_.size(), " values on its stack");
        return stack_.back();
      }
      step(opcode);
    }
    fail(ErrorCode::bad_model, where(), "more than ", kMaxOpcodes, " opcodes");
  }

 private:
  void step(std::uint8_t opcode) {
    switch (opcode) {
      case kProto: {
        const auto protocol = number<std::uint8_t>();
        WKV_CHECK(protocol >= 2 && protocol <= kMaxProtocol, bad_model, where(), "protocol ",
                  int{protocol}, " is not one of 2 to 5");
        return;
      }
      case kFrame:
        return static_cast<void>(number<std::uint64_t>());  // a hint for buffering
      case kMark:
        return marks_.push_back(stack_.size());
      case kPop:
        return static_cast<void>(pop());
      case kPopMark:
        return static_cast<void>(pop_mark());
      case kDup:
        return push(top());
      case kNone:
        return push(simple(none));
      case kNewTrue:
        return push(simple(boolean, 1));
      case kNewFalse:
        return push(simple(boolean, 0));
      case kBinInt:
        return push(simple(integer, number<std::int32_t>()));
      case kBinInt1:
        return push(simple(integer, number<std::uint8_t>()));
      case kBinInt2:
        return push(simple(integer, number<std::uint16_t>()));
      case kLong1:
        return push_long(number<std::uint8_t>());
      case kLong4:
        return push_long(number<std::uint32_t>());
      case kBinFloat: {  // big-endian, alone among the numbers
        PickleValue value = simple(real);
        value.real = std::bit_cast<double>(__builtin_bswap64(number<std::uint64_t>()));
        return push(value);
      }
      case kShortBinString:
      case kShortBinUnicode:
        return push_text(number<std::uint8_t>());
      case kBinString:
      case kBinUnicode:
        return push_text(number<std::uint32_t>());
      case kBinUnicode8:
        return push_text(number<std::uint64_t>());
      case kShortBinBytes:
        return push_opaque(number<std::uint8_t>());
      case kBinBytes:
        return push_opaque(number<std::uint32_t>());
      case kBinBytes8:
        return push_opaque(number<std::uint64_t>());
      case kEmptySet:
        return push(simple(opaque));
      case kFrozenSet:
        pop_mark();
        return push(simple(opaque));
      case kAddItems:
        pop_mark();
        return expect(top(), opaque, "ADDITEMS to something that is not a set");
      case kEmptyTuple:
        return push_sequence(tuple, 0);
      case kTuple1:
        return push_sequence(tuple, 1);
      case kTuple2:
        return push_sequence(tuple, 2);
      case kTuple3:
        return push_sequence(tuple, 3);
      case kTuple:
        return push_sequence(tuple, unmark());
      case kEmptyList:
        return push_sequence(list, 0);
      case kEmptyDict:
        return push_sequence(dict, 0);
      case kAppend:
        return extend(list, 1, "APPEND to something that is not a list");
      case kAppends:
        return extend(list, unmark(), "APPENDS to something that is not a list");
      case kSetItem:
        return extend(dict, 2, "SETITEM on something that is not a dict");
      case kSetItems: {
        const std::size_t count = unmark();
        WKV_CHECK(count % 2 == 0, bad_model, where(), "SETITEMS with a key without a value");
        return extend(dict, count, "SETITEMS on something that is not a dict");
      }
      case kBinPut:
        return put(number<std::uint8_t>());
      case kLongBinPut:
        return put(number<std::uint32_t>());
      case kMemoize:
        return put(static_cast<std::uint32_t>(memo_.size()));
      case kBinGet:
        return get(number<std::uint8_t>());
      case kLongBinGet:
        return get(number<std::uint32_t>());
      case kGlobal: {
        const std::string_view module = line();
        return push_global(module, line());
      }
      case kStackGlobal: {
        const PickleValue name = pop();
        const PickleValue module = pop();
        expect(name, text, "STACK_GLOBAL of something that is not a text");
        expect(module, text, "STACK_GLOBAL of something that is not a text");
        return push_global(module.text(), name.text());
      }
      case kReduce: {
        const PickleValue arguments = pop();
        const PickleValue callee = pop();
        return push(call_global(heap_, callee, arguments, where()));
      }
      case kNewObj:
        return new_object();
      case kBuild:
        return build();
      case kBinPersId:
        return push(persistent_load(heap_, pop(), where()));
      default:
        fail(ErrorCode::bad_model, where(), "opcode ", int{opcode},
             " is not part of a checkpoint's pickle");
    }
  }

  PicklePlace where() const noexcept { return {place_, pos_}; }

  std::span<const std::byte> take(std::uint64_t size) {
    WKV_CHECK(size <= bytes_.size() - pos_, bad_model, where(), "wants ", size, " bytes, ",
              bytes_.size() - pos_, " are left: the file is cut off or damaged");
    const auto taken = bytes_.subspan(pos_, size);
    pos_ += size;
    return taken;
  }

  template <class T>
  T number() {
    return load_le<T>(take(sizeof(T)).data());
  }

  std::string_view line() {
    const std::span<const std::byte> rest = bytes_.subspan(pos_);
    const void* end = rest.empty() ? nullptr : std::memchr(rest.data(), '\n', rest.size());
    WKV_CHECK(end != nullptr, bad_model, where(), "name without an end");
    const auto size = static_cast<std::size_t>(static_cast<const std::byte*>(end) - rest.data());
    const auto taken = take(size + 1);
    return {reinterpret_cast<const char*>(taken.data()), size};
  }

  void expect(const PickleValue& value, PickleKind kind, const char* problem) const {
    WKV_CHECK(value.kind == kind, bad_model, where(), problem);
  }

  void push(const PickleValue& value) { stack_.push_back(value); }

  // Values below the last mark are out of reach until it is gone, as in Python.
  std::size_t available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }

  PickleValue& top() {
    WKV_CHECK(available() > 0, bad_model, where(), "takes a value from an empty stack");
    return stack_.back();
  }

  PickleValue pop() {
    const PickleValue value = top();
    stack_.pop_back();
    return value;
  }

  // Forgets the last mark; returns how many values lay above it.
  std::size_t unmark() {
    WKV_CHECK(!marks_.empty(), bad_model, where(), "no mark on the stack");
    const std::size_t count = available();
    marks_.pop_back();
    return count;
  }

  void pop_mark() { stack_.resize(stack_.size() - unmark()); }

  void push_text(std::uint64_t size) {
    WKV_CHECK(size <= UINT32_MAX, bad_model, where(), "text of ", size, " bytes");
    PickleValue value = simple(text, 0, size);
    value.chars = reinterpret_cast<const char*>(take(size).data());
    push(value);
  }

  void push_opaque(std::uint64_t size) {
    take(size);
    push(simple(opaque));
  }

  // Two's complement, little-endian, any length. What does not fit in 64 bits is not a size.
  void push_long(std::uint32_t size) {
    const auto digits = take(size);
    if (size > sizeof(std::int64_t)) return push(simple(opaque));
    std::uint64_t value = 0;
    std::memcpy(&value, digits.data(), size);
    const unsigned unused = 64 - 8 * size;
    if (size > 0)
      value = static_cast<std::uint64_t>(static_cast<std::int64_t>(value << unused) >> unused);
    push(simple(integer, static_cast<std::int64_t>(value)));
  }

  void push_sequence(PickleKind kind, std::size_t count) {
    WKV_CHECK(count <= available(), bad_model, where(), "takes ", count, " values, the stack has ",
              available());
    heap_.charge(count + 1);
    const auto first = stack_.end() - static_cast<std::ptrdiff_t>(count);
    heap_.sequences.emplace_back(first, stack_.end());
    stack_.erase(first, stack_.end());
    push(simple(kind, 0, heap_.sequences.size() - 1));
  }

  // Appends the top `count` values to the container below them.
  void extend(PickleKind kind, std::size_t count, const char* problem) {
    WKV_CHECK(count < available(), bad_model, where(), "takes ", count + 1,
              " values, the stack has ", available());
    const auto first = stack_.end() - static_cast<std::ptrdiff_t>(count);
    const PickleValue container = *(first - 1);
    expect(container, kind, problem);
    heap_.charge(count);
    auto& items = heap_.sequences[container.node];
    items.insert(items.end(), first, stack_.end());
    stack_.erase(first, stack_.end());
  }

  void put(std::uint32_t index) { memo_[index] = top(); }

  void get(std::uint32_t index) {
    const auto found = memo_.find(index);
    WKV_CHECK(found != memo_.end(), bad_model, where(), "memo ", index, " was never stored");
    push(found->second);
  }

  void push_global(std::string_view module, std::string_view name) {
    const bool known = known_global(module, name).what != TorchGlobal::none;
    heap_.globals.push_back({module, name, known});
    push(simple(global, 0, heap_.globals.size() - 1));
  }

  // cls.__new__(cls, *arguments). An object of a class of somebody's code becomes a record.
  void new_object() {
    const PickleValue arguments = pop();
    const PickleValue type = pop();
    expect(type, global, "NEWOBJ of something that is not a class");
    expect(arguments, tuple, "NEWOBJ without arguments");
    if (heap_.globals[type.node].known) return push(call_global(heap_, type, arguments, where()));
    WKV_CHECK(heap_.items(arguments).empty(), bad_model, where(), "the pickle calls ",
              global_name(heap_.globals[type.node]),
              " with arguments; a checkpoint may only build tensors, and nothing was executed");
    heap_.records.push_back({type.node, {}});
    push(simple(record, 0, heap_.records.size() - 1));
  }

  // object.__setstate__(state): a record keeps it; attributes of dicts (_metadata) are dropped.
  void build() {
    const PickleValue state = pop();
    const PickleValue object = top();
    if (object.kind == record) {
      expect(state, dict, "object whose state is not a dict");
      heap_.records[object.node].state = state;
      return;
    }
    WKV_CHECK(object.kind == dict || object.kind == tensor || object.kind == opaque, bad_model,
              where(), "BUILD of something that has no state");
  }

  std::span<const std::byte> bytes_;
  std::size_t& pos_;
  PickleHeap& heap_;
  std::string_view place_;
  std::vector<PickleValue> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint32_t, PickleValue> memo_;
};

}  // namespace

const PickleValue* PickleHeap::find(const PickleValue& dict, std::string_view key) const {
  const auto& pairs = items(dict);
  for (std::size_t i = pairs.size(); i >= 2; i -= 2)
    if (pairs[i - 2].is_text(key)) return &pairs[i - 1];
  return nullptr;
}

const PickleGlobal* PickleHeap::first_unknown() const {
  for (const PickleGlobal& g : globals)
    if (!g.known) return &g;
  return nullptr;
}

void PickleHeap::charge(std::size_t count) {
  WKV_CHECK(count <= budget, bad_model, place, "the pickle makes more than 4 million items");
  budget -= count;
}

void append(std::string& to, const PicklePlace& place) {
  to += str(place.file, "pickle, byte ", place.byte, ": ");
}

std::string global_name(const PickleGlobal& global) {
  const std::string_view module = global.module.substr(0, 100);
  return quote(str(module, '.', global.name.substr(0, 100)));
}

PickleValue run_pickle(std::span<const std::byte> bytes, std::size_t& pos, PickleHeap& heap,
                       std::string_view place) {
  heap.place = place;
  return Machine(bytes, pos, heap, place).run();
}

}  // namespace wkv
