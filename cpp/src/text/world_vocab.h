// The World vocabulary as compiled in. Defined in a source that tools/make_world_vocab.py
// generates.
#pragma once

namespace wkv::detail {

struct VocabTable {
  int count;            ///< 65529, ids 1, 2, ...; 0: this build has no vocabulary
  const char* bytes;    ///< all tokens, one after another
  const char* lengths;  ///< [count], in bytes, as unsigned char
};

extern const VocabTable kWorldVocab;

}  // namespace wkv::detail
