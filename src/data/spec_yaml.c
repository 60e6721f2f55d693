#include "data/spec_yaml.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

struct reader {
    yaml_parser_t parser;
    const char *source, *text;
    size_t length;
};

const char *spec_yaml_kind_name(enum yaml_kind k)
{
    return k == YAML_TEXT ? "a value" : k == YAML_LIST ? "a list" : "a map";
}

static void clear(struct yaml *y)
{
    for (int i = 0; i < y->n; i++) clear(&y->item[i]);
    free(y->item);
    free(y->text);
    *y = (struct yaml){0};
}

void spec_yaml_free(struct yaml *y)
{
    if (!y) return;
    clear(y);
    free(y);
}

static int line_at(const struct reader *r, size_t offset)
{
    int line = 1;

    for (size_t i = 0; i < offset && i < r->length; i++) line += r->text[i] == '\n';
    return line;
}

static status next(struct reader *r, yaml_event_t *event, struct err *e)
{
    yaml_parser_t *p = &r->parser;

    if (yaml_parser_parse(p, event)) return OK;
    int line = p->error == YAML_READER_ERROR ? line_at(r, p->problem_offset) : (int)p->problem_mark.line + 1;
    return err_set(e, ERR_SPEC, "%s:%d: expected YAML, found an error: %s%s%s", r->source, line,
                   p->problem ? p->problem : "out of memory", p->context ? " " : "", p->context ? p->context : "");
}

static status refuse_extras(const struct reader *r, const yaml_event_t *event, struct err *e)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;
    int line = (int)event->start_mark.line + 1;

    if (event->type == YAML_ALIAS_EVENT)
        return err_set(e, ERR_SPEC, "%s:%d: expected a value, found the alias *%s; job specs have no aliases", r->source, line,
                       (const char *)event->data.alias.anchor);
    if (event->type == YAML_SCALAR_EVENT) {
        anchor = event->data.scalar.anchor;
        tag = event->data.scalar.tag;
    } else if (event->type == YAML_SEQUENCE_START_EVENT) {
        anchor = event->data.sequence_start.anchor;
        tag = event->data.sequence_start.tag;
    } else if (event->type == YAML_MAPPING_START_EVENT) {
        anchor = event->data.mapping_start.anchor;
        tag = event->data.mapping_start.tag;
    }
    if (anchor)
        return err_set(e, ERR_SPEC, "%s:%d: expected a value, found the anchor &%s; job specs have no anchors", r->source, line,
                       (const char *)anchor);
    if (tag)
        return err_set(e, ERR_SPEC, "%s:%d: expected a value, found the tag %s; job specs have no tags", r->source, line,
                       (const char *)tag);
    return OK;
}

static struct yaml *add_item(struct yaml *y)
{
    if ((y->n & (y->n - 1)) == 0) { /* the room is the next power of two */
        y->item = realloc(y->item, sizeof(*y->item) * (y->n ? (size_t)y->n * 2 : 1));
        BUG_ON(!y->item);
    }
    y->item[y->n] = (struct yaml){0};
    return &y->item[y->n++];
}

/* Builds the node that begins with `event` and takes the event. */
static status build(struct reader *r, struct yaml *y, yaml_event_t *event, int depth, struct err *e)
{
    status s = refuse_extras(r, event, e);

    y->line = (int)event->start_mark.line + 1;
    if (s == OK && event->type == YAML_SCALAR_EVENT) {
        y->kind = YAML_TEXT;
        y->length = event->data.scalar.length;
        y->plain = event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        y->text = malloc(y->length + 1);
        BUG_ON(!y->text);
        memcpy(y->text, event->data.scalar.value, y->length);
        y->text[y->length] = 0;
        yaml_event_delete(event);
        return OK;
    }
    y->kind = event->type == YAML_MAPPING_START_EVENT ? YAML_MAP : YAML_LIST;
    yaml_event_delete(event);
    if (s) return s;
    if (depth >= YAML_DEPTH)
        return err_set(e, ERR_SPEC, "%s:%d: expected at most %d levels of nesting, found more", r->source, y->line, YAML_DEPTH);
    for (;;) {
        yaml_event_t inner;

        if (next(r, &inner, e)) return e->code;
        if (inner.type == YAML_SEQUENCE_END_EVENT || inner.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&inner);
            return OK;
        }
        struct yaml *child = add_item(y);
        if (build(r, child, &inner, depth + 1, e)) return e->code;
        if (y->kind == YAML_MAP && y->n % 2 == 1 && child->kind != YAML_TEXT)
            return err_set(e, ERR_SPEC, "%s:%d: expected a key, found %s", r->source, child->line,
                           spec_yaml_kind_name(child->kind));
    }
}

/* stream start, document start, node, document end, stream end */
static status document(struct reader *r, struct yaml *root, struct err *e)
{
    yaml_event_t event;

    if (next(r, &event, e)) return e->code; /* stream start */
    yaml_event_delete(&event);
    if (next(r, &event, e)) return e->code;
    bool empty = event.type == YAML_STREAM_END_EVENT;
    yaml_event_delete(&event);
    if (empty) return err_set(e, ERR_SPEC, "%s:1: expected a job spec, found an empty file", r->source);
    if (next(r, &event, e) || build(r, root, &event, 0, e)) return e->code;
    if (next(r, &event, e)) return e->code; /* document end */
    yaml_event_delete(&event);
    if (next(r, &event, e)) return e->code;
    bool more = event.type != YAML_STREAM_END_EVENT;
    int line = (int)event.start_mark.line + 1;
    yaml_event_delete(&event);
    if (more) return err_set(e, ERR_SPEC, "%s:%d: expected the end of the file, found a second document", r->source, line);
    return OK;
}

status spec_yaml_parse(struct yaml **out, const char *text, size_t length, const char *source, struct err *e)
{
    struct reader r = {.source = source, .text = text, .length = length};
    struct yaml *root = calloc(1, sizeof(*root));

    *out = NULL;
    BUG_ON(!root || !yaml_parser_initialize(&r.parser));
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    status s = document(&r, root, e);
    yaml_parser_delete(&r.parser);
    if (s) {
        spec_yaml_free(root);
        return s;
    }
    *out = root;
    return OK;
}
