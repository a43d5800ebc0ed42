// Reader of vocabularies in the World's text format.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "text/trie.h"

namespace wkv::detail {

/// The tokens of lines `id literal length`. The id and the length are what stands before the first
/// and after the last blank of a line; the literal is a Python str or bytes literal, of which this
/// reads the escapes and evaluates nothing. Code points of a str become UTF-8. Throws
/// Error(bad_model) with `place` and the number of the line.
std::vector<Trie::Entry> parse_vocab(std::string_view text, const std::string& place);

}  // namespace wkv::detail
