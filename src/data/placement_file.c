#include "data/placement_file.h"

#include <stdlib.h>

#include "base/file.h"
#include "data/json.h"

enum { PLACEMENT_BYTES_MAX = 64 << 20, RANKS_MAX = 1 << 15 };

static status read_layer(int *row, const struct json_t *list, const char *source, int layer, int experts, int ranks,
                         struct err *e)
{
    if (!json_is_array(list)) return err_set(e, ERR_FORMAT, "%s: layers[%d]: expected a list of ranks", source, layer);
    if (json_length(list) != (size_t)experts)
        return err_set(e, ERR_SPEC, "%s: layers[%d]: expected the ranks of %d experts, found %zu", source, layer, experts,
                       json_length(list));
    for (int x = 0; x < experts; x++) {
        const struct json_t *v = json_item(list, (size_t)x);

        if (!json_is_int(v)) return err_set(e, ERR_FORMAT, "%s: layers[%d][%d]: expected a rank", source, layer, x);
        if (json_int(v) < 0 || json_int(v) >= ranks)
            return err_set(e, ERR_SPEC, "%s: layers[%d][%d]: expected a rank from 0 to %d, found %lld", source, layer, x,
                           ranks - 1, (long long)json_int(v));
        row[x] = (int)json_int(v);
    }
    return OK;
}

static status read_table(int **table, const struct json_t *o, const char *source, int layers, int experts, int ranks,
                         struct err *e)
{
    const struct json_t *list = NULL;
    int64_t made_for = 0;

    if (!json_is_object(o)) return err_set(e, ERR_FORMAT, "%s: expected an object with ranks and layers", source);
    if (json_get_int(&made_for, o, "ranks", 1, RANKS_MAX, JSON_REQUIRED, source, e)) return e->code;
    if (json_get_array(&list, o, "layers", JSON_REQUIRED, source, e)) return e->code;
    if (made_for != ranks)
        return err_set(e, ERR_SPEC, "%s: ranks: expected %d, the ranks of this launch, found %lld", source, ranks,
                       (long long)made_for);
    if (json_length(list) != (size_t)layers)
        return err_set(e, ERR_SPEC, "%s: layers: expected %d, those of the model, found %zu", source, layers, json_length(list));
    int *t = calloc((size_t)layers * (size_t)experts + 1, sizeof(*t));
    if (!t) return err_set(e, ERR_LIMIT, "%s: out of memory for %d layers of %d experts", source, layers, experts);
    for (int l = 0; l < layers; l++)
        if (read_layer(t + (size_t)l * (size_t)experts, json_item(list, (size_t)l), source, l, experts, ranks, e)) {
            free(t);
            return e->code;
        }
    *table = t;
    return OK;
}

status placement_file_parse(int **table, const char *text, size_t length, const char *source, int layers, int experts, int ranks,
                            struct err *e)
{
    struct json_t *o = NULL;

    *table = NULL;
    if (json_parse(&o, text, length, source, e)) return e->code;
    status st = read_table(table, o, source, layers, experts, ranks, e);
    json_free(o);
    return st;
}

status placement_file_read(int **table, const char *path, int layers, int experts, int ranks, struct err *e)
{
    char *text;
    size_t length;

    *table = NULL;
    if (file_read(&text, &length, path, PLACEMENT_BYTES_MAX, e)) return e->code;
    status st = placement_file_parse(table, text, length, path, layers, experts, ranks, e);
    free(text);
    return st;
}
