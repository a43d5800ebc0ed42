#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/check.h"
#include "core/thread_pool.h"
#include "text/trie.h"
#include "text/vocab_file.h"
#include "text/world_vocab.h"
#include "wkv/text.hpp"

namespace wkv {
namespace {

constexpr int kWorldLastId = 65529;
constexpr int kWorldSize = 65536;             // rows of the World models' embedding
constexpr std::size_t kPieceBytes = 1 << 18;  // of a text that several threads share: some 3 ms

std::shared_ptr<const detail::Trie> make_builtin() {
  const detail::VocabTable& table = detail::kWorldVocab;
  std::vector<detail::Trie::Entry> entries;
  entries.reserve(static_cast<std::size_t>(table.count));
  const char* bytes = table.bytes;
  for (int i = 0; i < table.count; ++i) {
    const auto length = static_cast<unsigned char>(table.lengths[i]);
    entries.push_back({i + 1, std::string(bytes, length)});
    bytes += length;
  }
  return std::make_shared<const detail::Trie>(std::move(entries),
                                              "[tokenizer] the World vocabulary");
}

/// Runs task(i) for i in [0, tasks) on up to `threads` threads, the caller's included, and throws
/// what the first task to fail threw. Threads are started per call: 30 us each, so callers hand
/// over milliseconds of work.
template <class Task>
void parallel(std::size_t tasks, int threads, const Task& task) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (std::size_t i; (i = next.fetch_add(1)) < tasks;) task(i);
    } catch (...) {
      next.store(tasks);
      const std::scoped_lock lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::jthread> team;
  const std::size_t workers = std::min(tasks, static_cast<std::size_t>(threads));
  try {
    for (std::size_t i = 1; i < workers; ++i) team.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no thread to give: those that run do the work.
  }
  work();
  team.clear();  // joins
  if (failure) std::rethrow_exception(failure);
}

int check_threads(int threads) {
  WKV_CHECK(threads >= 0, invalid_argument, "[tokenizer] threads must not be negative, got ",
            threads);
  return threads == 0 ? usable_cores() : threads;
}

}  // namespace

WorldTokenizer::WorldTokenizer(std::shared_ptr<const detail::Trie> trie) : trie_(std::move(trie)) {}

bool WorldTokenizer::has_builtin() noexcept { return detail::kWorldVocab.count > 0; }

WorldTokenizer WorldTokenizer::builtin() {
  WKV_CHECK(has_builtin(), unsupported,
            "[tokenizer] this build of wkv has no World vocabulary. Reinstall it where the PyPI "
            "distribution `pyrwkv-tokenizer` or `rwkv` is installed, or with "
            "-DWKV_WORLD_VOCAB=path/rwkv_vocab_v20230424.txt; or open that file at run time");
  static const std::shared_ptr<const detail::Trie> trie = make_builtin();
  return WorldTokenizer(trie);
}

WorldTokenizer WorldTokenizer::from_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  WKV_CHECK(file, io, "[tokenizer] cannot open ", path.string());
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  WKV_CHECK(!file.bad(), io, "[tokenizer] cannot read ", path.string());
  const std::string place = "[tokenizer] " + path.string();
  return WorldTokenizer(
      std::make_shared<const detail::Trie>(detail::parse_vocab(text, place), place));
}

std::vector<Token> WorldTokenizer::encode(std::string_view text, int threads) const {
  const detail::Trie& trie = *trie_;
  std::vector<Token> ids;
  threads = check_threads(threads);
  if (threads == 1 || text.size() < 4 * kPieceBytes) {
    trie.encode(text, ids);
    return ids;
  }
  // Cut where no token can reach across, so that the pieces' ids are those of the whole. Text
  // without such a place (a megabyte of blanks, say) stays in one piece.
  std::vector<std::string_view> pieces;
  while (text.size() > kPieceBytes) {
    std::size_t cut = kPieceBytes;
    while (cut < text.size() && !trie.separates(static_cast<unsigned char>(text[cut - 1]),
                                                static_cast<unsigned char>(text[cut]))) {
      ++cut;
    }
    pieces.push_back(text.substr(0, cut));
    text.remove_prefix(cut);
  }
  pieces.push_back(text);
  const std::vector<std::vector<Token>> parts = encode_batch(pieces, threads);
  std::size_t total = 0;
  for (const auto& part : parts) total += part.size();
  ids.reserve(total);
  for (const auto& part : parts) ids.insert(ids.end(), part.begin(), part.end());
  return ids;
}

std::vector<std::vector<Token>> WorldTokenizer::encode_batch(
    std::span<const std::string_view> texts, int threads) const {
  std::vector<std::vector<Token>> ids(texts.size());
  std::size_t total = 0;
  for (const std::string_view text : texts) total += text.size();
  // Neighbouring texts go together, about 64 KB (1 ms) at a time: short texts cost no more to hand
  // out than long ones.
  const auto tasks =
      std::clamp<std::size_t>(total >> 16, 1, std::max<std::size_t>(texts.size(), 1));
  std::vector<std::size_t> starts{0};
  std::size_t sum = 0;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    sum += texts[i].size();
    if (sum * tasks >= starts.size() * total) starts.push_back(i + 1);
  }
  starts.back() = texts.size();
  parallel(starts.size() - 1, check_threads(threads), [&](std::size_t task) {
    for (std::size_t i = starts[task]; i < starts[task + 1]; ++i) trie_->encode(texts[i], ids[i]);
  });
  return ids;
}

std::string WorldTokenizer::decode(std::span<const Token> ids) const {
  std::size_t size = 0;
  for (const Token id : ids) size += trie_->bytes(id).size();
  // Most tokens are short, and copying a fixed 16 bytes is faster than copying so many as there
  // are: each copy overwrites what the one before wrote too much.
  constexpr std::size_t kCopy = detail::Trie::kReadable;
  std::string bytes(size + kCopy, '\0');
  char* out = bytes.data();
  for (const Token id : ids) {
    const std::string_view token = trie_->bytes(id);
    std::memcpy(out, token.data(), kCopy);
    if (token.size() > kCopy) std::memcpy(out, token.data(), token.size());
    out += token.size();
  }
  bytes.resize(size);
  return bytes;
}

std::string_view WorldTokenizer::token_bytes(Token id) const noexcept { return trie_->bytes(id); }

int WorldTokenizer::size() const noexcept {
  const int end = trie_->end_id();
  return end == kWorldLastId + 1 ? kWorldSize : end;
}

}  // namespace wkv
