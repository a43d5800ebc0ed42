#include "io/pickle_torch.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "core/check.h"
#include "io/bytes.h"

namespace wkv {
namespace {

using enum PickleKind;

struct NamedType {
  std::string_view name;
  DType dtype;
};

// torch.<name>Storage, also torch.cuda.<name>Storage in files saved from a GPU before torch 1.6.
constexpr std::array<NamedType, 10> kStorages{{
    {"FloatStorage", DType::f32},
    {"HalfStorage", DType::f16},
    {"BFloat16Storage", DType::bf16},
    {"DoubleStorage", DType::f64},
    {"LongStorage", DType::i64},
    {"IntStorage", DType::i32},
    {"ShortStorage", DType::i16},
    {"CharStorage", DType::i8},
    {"ByteStorage", DType::u8},
    {"BoolStorage", DType::boolean},
}};
// Known to exist; a tensor of such a type is listed and refused when it is asked for.
constexpr std::array<std::string_view, 8> kOtherStorages{
    "ComplexFloatStorage", "ComplexDoubleStorage", "QUInt8Storage",   "QInt8Storage",
    "QInt32Storage",       "QUInt4x2Storage",      "QUInt2x4Storage", "UntypedStorage"};

constexpr std::array<NamedType, 15> kTypes{{
    {"float32", DType::f32},
    {"float", DType::f32},
    {"float16", DType::f16},
    {"half", DType::f16},
    {"bfloat16", DType::bf16},
    {"float64", DType::f64},
    {"double", DType::f64},
    {"int64", DType::i64},
    {"long", DType::i64},
    {"int32", DType::i32},
    {"int16", DType::i16},
    {"int8", DType::i8},
    {"uint8", DType::u8},
    {"bool", DType::boolean},
    {"int", DType::i32},
}};
constexpr std::array<std::string_view, 11> kOtherTypes{
    "uint16",          "uint32",          "uint64",        "complex64",
    "complex128",      "complex32",       "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"};

template <std::size_t n>
const NamedType* find_type(const std::array<NamedType, n>& types, std::string_view name) noexcept {
  const auto found =
      std::find_if(types.begin(), types.end(), [&](const NamedType& t) { return t.name == name; });
  return found == types.end() ? nullptr : &*found;
}

template <std::size_t n>
bool contains(const std::array<std::string_view, n>& names, std::string_view name) noexcept {
  return std::find(names.begin(), names.end(), name) != names.end();
}

PickleValue make(PickleKind kind, std::size_t node) {
  PickleValue value;
  value.kind = kind;
  value.node = static_cast<std::uint32_t>(node);
  return value;
}

PickleValue new_sequence(PickleHeap& heap, PickleKind kind, std::vector<PickleValue> items) {
  heap.sequences.push_back(std::move(items));
  return make(kind, heap.sequences.size() - 1);
}

TorchGlobal what_of(const PickleHeap& heap, const PickleValue& v) noexcept {
  if (v.kind != global) return TorchGlobal::none;
  const PickleGlobal& g = heap.globals[v.node];
  return known_global(g.module, g.name).what;
}

// "[model.pth] pickle, byte 12: 'torch._utils._rebuild_tensor_v2'", written when there is a
// message.
struct CallPlace {
  PicklePlace place;
  std::string_view module;
  std::string_view name;
};
void append(std::string& to, const CallPlace& call) {
  append(to, call.place);
  to += global_name({call.module, call.name});
}

// Arguments of one call, checked as they are taken.
class Arguments {
 public:
  Arguments(PickleHeap& heap, const PickleValue& tuple, const CallPlace& place)
      : heap_(heap), items_(heap.items(tuple)), place_(place) {}

  std::size_t size() const noexcept { return items_.size(); }
  const CallPlace& place() const noexcept { return place_; }

  void expect(std::size_t least) const {
    WKV_CHECK(items_.size() >= least, bad_model, place_, " has ", items_.size(),
              " arguments, wants ", least);
  }
  const PickleValue& at(std::size_t i, PickleKind kind, const char* what) const {
    WKV_CHECK(items_[i].kind == kind, bad_model, place_, ": argument ", i + 1, " is not ", what);
    return items_[i];
  }
  std::int64_t count(std::size_t i) const {
    const std::int64_t n = at(i, integer, "a number").integer;
    WKV_CHECK(n >= 0, bad_model, place_, ": argument ", i + 1, " is negative (", n, ")");
    return n;
  }
  std::vector<std::int64_t> counts(std::size_t i) {
    const auto& values = heap_.items(at(i, tuple, "a tuple"));
    heap_.charge(values.size());
    std::vector<std::int64_t> out;
    for (const PickleValue& v : values) {
      WKV_CHECK(v.kind == integer && v.integer >= 0, bad_model, place_, ": argument ", i + 1,
                " holds something that is not a size");
      out.push_back(v.integer);
    }
    return out;
  }

 private:
  PickleHeap& heap_;
  const std::vector<PickleValue>& items_;
  CallPlace place_;
};

PickleValue rebuild_tensor(PickleHeap& heap, Arguments& in, std::string_view function) {
  in.expect(4);
  PickleTensor tensor;
  tensor.storage = in.at(0, storage, "a storage").node;
  tensor.offset = in.count(1);
  tensor.shape = in.counts(2);
  tensor.strides = in.counts(3);
  const PickleStorage& from = heap.storages[tensor.storage];
  tensor.dtype = from.dtype;
  tensor.stored_dtype = from.stored_dtype;
  if (function == "_rebuild_tensor_v3") {  // the type is an argument, the storage is bytes
    in.expect(7);
    const PickleValue& type = in.at(6, global, "a dtype");
    WKV_CHECK(what_of(heap, type) == TorchGlobal::dtype, bad_model, in.place(),
              ": argument 7 is not a dtype");
    const PickleGlobal& name = heap.globals[type.node];
    tensor.dtype = known_global(name.module, name.name).dtype;
    tensor.stored_dtype = name.name;
  }
  heap.tensors.push_back(std::move(tensor));
  return make(PickleKind::tensor, heap.tensors.size() - 1);
}

// Python 2 and some subclasses hand OrderedDict its pairs: OrderedDict([[k, v], ...]).
PickleValue ordered_dict(PickleHeap& heap, const PickleValue& arguments, const Arguments& in) {
  std::vector<PickleValue> items;
  if (in.size() > 0) {
    const PickleValue pairs = heap.items(arguments)[0];
    WKV_CHECK(in.size() == 1 && pairs.kind == list, bad_model, in.place(),
              " wants a list of pairs");
    for (const PickleValue& pair : heap.items(pairs)) {
      const bool is_pair =
          (pair.kind == list || pair.kind == tuple) && heap.items(pair).size() == 2;
      WKV_CHECK(is_pair, bad_model, in.place(), " wants a list of pairs");
      heap.charge(2);
      items.insert(items.end(), heap.items(pair).begin(), heap.items(pair).end());
    }
  }
  return new_sequence(heap, dict, std::move(items));
}

}  // namespace

KnownGlobal known_global(std::string_view module, std::string_view name) noexcept {
  if (module == "torch" || module == "torch.cuda" || module == "torch.storage") {
    if (const NamedType* found = find_type(kStorages, name); found != nullptr)
      return {TorchGlobal::storage, found->dtype};
    if (contains(kOtherStorages, name)) return {TorchGlobal::storage, DType::automatic};
  }
  if (module == "torch") {
    if (const NamedType* found = find_type(kTypes, name); found != nullptr)
      return {TorchGlobal::dtype, found->dtype};
    if (contains(kOtherTypes, name)) return {TorchGlobal::dtype, DType::automatic};
    if (name == "Size" || name == "device") return {TorchGlobal::opaque_call, {}};
    if (name == "Tensor") return {TorchGlobal::tensor_type, {}};
  }
  if (module == "torch._utils") {
    if (name == "_rebuild_tensor" || name == "_rebuild_tensor_v2" || name == "_rebuild_tensor_v3")
      return {TorchGlobal::rebuild_tensor, {}};
    if (name == "_rebuild_parameter" || name == "_rebuild_parameter_with_state")
      return {TorchGlobal::rebuild_parameter, {}};
  }
  if (module == "torch._tensor" && name == "_rebuild_from_type_v2")
    return {TorchGlobal::rebuild_from_type, {}};
  if (module == "torch.nn.parameter" && (name == "Parameter" || name == "Buffer"))
    return {TorchGlobal::tensor_type, {}};
  if (module == "collections" && name == "OrderedDict") return {TorchGlobal::ordered_dict, {}};
  if ((module == "__builtin__" || module == "builtins") && (name == "set" || name == "frozenset"))
    return {TorchGlobal::opaque_call, {}};
  return {};
}

PickleValue call_global(PickleHeap& heap, const PickleValue& callee, const PickleValue& arguments,
                        const PicklePlace& place) {
  WKV_CHECK(callee.kind == global && arguments.kind == tuple, bad_model, place,
            "the pickle calls something that is not a function");
  const PickleGlobal function = heap.globals[callee.node];
  Arguments in(heap, arguments, {place, function.module, function.name});
  switch (known_global(function.module, function.name).what) {
    case TorchGlobal::ordered_dict:
      return ordered_dict(heap, arguments, in);
    case TorchGlobal::rebuild_tensor:
      return rebuild_tensor(heap, in, function.name);
    case TorchGlobal::rebuild_parameter:  // (tensor, requires_grad, hooks)
      in.expect(1);
      return in.at(0, tensor, "a tensor");
    case TorchGlobal::rebuild_from_type: {  // (function, type, arguments, state)
      in.expect(3);
      const PickleValue& inner = in.at(0, global, "a function");
      const TorchGlobal what = what_of(heap, inner);
      WKV_CHECK(what == TorchGlobal::rebuild_tensor || what == TorchGlobal::rebuild_parameter,
                bad_model, place, "the pickle calls ", global_name(heap.globals[inner.node]),
                "; a checkpoint may only build tensors, and nothing was executed");
      const PickleValue type = in.at(1, global, "a type");
      WKV_CHECK(what_of(heap, type) == TorchGlobal::tensor_type, bad_model, place,
                "tensor of the unknown class ", global_name(heap.globals[type.node]));
      // One level only: `inner` is not rebuild_from_type.
      const PickleValue function_value = inner;
      const PickleValue inner_arguments = in.at(2, tuple, "a tuple");
      return call_global(heap, function_value, inner_arguments, place);
    }
    case TorchGlobal::opaque_call:
      return make(opaque, 0);
    default:
      fail(ErrorCode::bad_model, place, "the pickle calls ", global_name(function),
           "; a checkpoint may only build tensors, and nothing was executed");
  }
}

PickleValue persistent_load(PickleHeap& heap, const PickleValue& id, const PicklePlace& place) {
  WKV_CHECK(id.kind == tuple && !heap.items(id).empty(), bad_model, place,
            "persistent id that is not a tuple");
  const Arguments in(heap, id, {place, "persistent", "id"});
  if (in.at(0, text, "a text").is_text("module")) {  // (class, file, source): only the class's name
    in.expect(2);
    return in.at(1, global, "a class");
  }
  WKV_CHECK(in.at(0, text, "a text").is_text("storage"), bad_model, place,
            "persistent id of the unknown kind ", quote(in.at(0, text, "a text").text()));
  in.expect(5);
  const PickleValue& type = in.at(1, global, "a storage class");
  const PickleGlobal& name = heap.globals[type.node];
  const KnownGlobal known = known_global(name.module, name.name);
  WKV_CHECK(known.what == TorchGlobal::storage, bad_model, place, global_name(name),
            " is not a storage class");
  PickleStorage storage{known.dtype, name.name, in.at(2, text, "a key").text(), in.count(4), 0, 0};
  storage.record_numel = storage.numel;
  const PickleValue& last = heap.items(id).back();
  if (in.size() >= 6 && last.kind == tuple) {  // a view of the record: (key, offset, numel)
    const Arguments view(heap, last, {place, "storage", "view"});
    view.expect(3);
    storage.offset = view.count(1);
    storage.numel = view.count(2);
    WKV_CHECK(storage.offset <= storage.record_numel &&
                  storage.numel <= storage.record_numel - storage.offset,
              bad_model, place, "storage view reaches outside its storage ", quote(storage.key));
  }
  heap.storages.push_back(storage);
  return make(PickleKind::storage, heap.storages.size() - 1);
}

}  // namespace wkv
