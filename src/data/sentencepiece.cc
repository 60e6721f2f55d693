#include "data/sentencepiece.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

/* The library's log level has no public header; where the symbol is missing it stays as it is. */
namespace sentencepiece
{
namespace logging
{
__attribute__((weak)) void SetMinLogLevel(int level);
}
} // namespace sentencepiece

struct sentencepiece_model {
    sentencepiece::SentencePieceProcessor processor;
};

extern "C" int sentencepiece_open(struct sentencepiece_model **out, const void *bytes, size_t length, char *why, size_t room)
{
    struct sentencepiece_model *s = nullptr;

    *out = nullptr;
    try {
        if (sentencepiece::logging::SetMinLogLevel) sentencepiece::logging::SetMinLogLevel(3); /* fatal only */
        s = new struct sentencepiece_model;
        auto status = s->processor.LoadFromSerializedProto({static_cast<const char *>(bytes), length});
        if (status.ok()) {
            *out = s;
            return 0;
        }
        std::snprintf(why, room, "%s", status.ToString().c_str());
    } catch (const std::exception &x) {
        std::snprintf(why, room, "%s", x.what());
    } catch (...) {
        std::snprintf(why, room, "not a SentencePiece model");
    }
    delete s;
    return -1;
}

extern "C" void sentencepiece_close(struct sentencepiece_model *s)
{
    delete s;
}

extern "C" int sentencepiece_vocab(const struct sentencepiece_model *s)
{
    return s->processor.GetPieceSize();
}

extern "C" int sentencepiece_encode(const struct sentencepiece_model *s, int32_t **ids, size_t *n, const char *text,
                                    size_t length, char *why, size_t room)
{
    *ids = nullptr;
    *n = 0;
    try {
        std::vector<int> got;
        auto status = s->processor.Encode({text, length}, &got);

        if (!status.ok()) {
            std::snprintf(why, room, "%s", status.ToString().c_str());
            return -1;
        }
        if (got.empty()) return 0;
        *ids = static_cast<int32_t *>(std::malloc(got.size() * sizeof(**ids)));
        if (!*ids) {
            std::snprintf(why, room, "no memory for %zu tokens", got.size());
            return -1;
        }
        for (size_t i = 0; i < got.size(); i++) (*ids)[i] = got[i];
        *n = got.size();
        return 0;
    } catch (const std::exception &x) {
        std::snprintf(why, room, "%s", x.what());
    } catch (...) {
        std::snprintf(why, room, "the library failed");
    }
    return -1;
}

extern "C" enum sentencepiece_type sentencepiece_type(const struct sentencepiece_model *s, int32_t id)
{
    if (s->processor.IsByte(id)) return PIECE_BYTE;
    return s->processor.IsControl(id) || s->processor.IsUnknown(id) ? PIECE_SPECIAL : PIECE_TEXT;
}

extern "C" const char *sentencepiece_piece(const struct sentencepiece_model *s, int32_t id, size_t *length)
{
    const std::string &piece = s->processor.IdToPiece(id);

    *length = piece.size();
    return piece.data();
}
