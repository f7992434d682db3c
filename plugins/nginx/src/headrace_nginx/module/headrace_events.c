/*
 * Reads the events of a stream, each byte once: a nanosecond or so. No parser: quotes, escapes and brackets must fit,
 * and the few keys that matter are looked at where they may stand. Lines may end as https://html.spec.whatwg.org says.
 */

#include "headrace_events.h"

#define DEEPEST 64      /* brackets that are kept in mind: what is deeper is not looked into */
#define OTHERS "[\"-0123456789tfn"     /* with which JSON that is no object begins */
#define ABORT "\"abort\""
#define LONGEST_TYPE 64
#define KEYS (1 << 4 | 1 << 5 | 1 << 7 | 1 << 13)       /* lengths of those that matter */
#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))
#define LESS(eight, byte) (((eight) - EACH(byte)) & ~(eight) & EACH(0x80))      /* not 0: one of them is less */


static u_char *
line_end(u_char *at, u_char *end)
{
    while (at < end && *at != '\n' && *at != '\r') {
        at++;
    }
    return at;
}


static u_char *
skip_space(u_char *at, u_char *end)
{
    while (at < end && (*at == ' ' || *at == '\t')) {
        at++;
    }
    return at;
}


/* The rest of a line that is not, or not any more, looked into. */
static u_char *
skip(headrace_event_t *event, u_char *at, u_char *end, ngx_flag_t malformed)
{
    event->malformed = malformed;
    event->skipped = 1;
    return line_end(at, end);
}


/* Where a string that began before `at` is over: at its quote, at a byte that no string has, or at `end`. */
static u_char *
string_end(u_char *at, u_char *end)
{
    uint64_t  eight;

    for (; end - at >= 8; at += 8) {
        ngx_memcpy(&eight, at, 8);
        if (LESS(eight, ' ') | LESS(eight ^ EACH('"'), 1) | LESS(eight ^ EACH('\\'), 1)) {
            break;
        }
    }
    for (; at < end && *at != '"' && *at >= ' '; at++) {
        if (*at == '\\') {
            if (end - at < 2) {
                return end;
            }
            if (at[1] < ' ') {
                return at + 1;
            }
            at++;
        }
    }
    return at;
}


static void
note_index(headrace_event_t *event, u_char *at, u_char *end)
{
    ngx_uint_t  index = 0;

    for (; at < end && *at >= '0' && *at <= '9' && index < 64; at++) {
        index = 10 * index + (*at - '0');
    }
    event->index = ngx_min(index, 64);
}


static void
note_type(headrace_event_t *event, u_char *at, u_char *end)
{
    u_char  *quote = memchr(at, '"', ngx_min(end - at, LONGEST_TYPE));

    event->type.data = at;
    event->type.len = quote != NULL ? quote - at : 0;
}


/* A string is over, between `start` and `at`: it may be a key that matters. An answer is an object in a list. */
static void
note_key(headrace_event_t *event, u_char *start, u_char *at, u_char *end)
{
    size_t   length = at - start;
    u_char  *value;

    if (length > 13 || !(KEYS & 1 << length)) {
        return;
    }
    value = skip_space(at + 1, end);
    if (value == end || *value != ':') {
        return;
    }
    value = skip_space(value + 1, end);
    if (value == end) {
        return;
    }
    if (event->depth == 3) {
        if (length == 13 && ngx_memcmp(start, "finish_reason", 13) == 0) {
            event->reason = *value == '"';
            event->abort = (size_t) (end - value) >= sizeof(ABORT) - 1
                           && ngx_memcmp(value, ABORT, sizeof(ABORT) - 1) == 0;
        } else if (length == 5 && ngx_memcmp(start, "index", 5) == 0) {
            note_index(event, value, end);
        }
    } else if (length == 5 && ngx_memcmp(start, "error", 5) == 0) {
        event->error = *value != 'n';
    } else if (length == 5 && ngx_memcmp(start, "usage", 5) == 0) {
        event->usage = 1;
    } else if (length == 7 && ngx_memcmp(start, "choices", 7) == 0 && *value == '[') {
        value = skip_space(value + 1, end);
        event->no_choices = value < end && *value == ']';
    } else if (length == 4 && ngx_memcmp(start, "type", 4) == 0 && *value == '"') {
        note_type(event, value + 1, end);
    }
}


static void
open_bracket(headrace_event_t *event, ngx_flag_t array)
{
    event->arrays = event->arrays << 1 | array;
    event->depth++;
    if (event->depth == 3) {
        event->reason = 0;
        event->abort = 0;
        event->index = 0;
    }
}


/* Whether this was the bracket to close. */
static ngx_flag_t
close_bracket(headrace_event_t *event, ngx_flag_t array)
{
    if ((ngx_flag_t) (event->arrays & 1) != array) {
        return 0;
    }
    if (event->depth == 3 && event->reason && (event->arrays & 7) == 2) {
        event->aborted |= event->abort;
        if (event->index < 64) {
            event->finished |= (uint64_t) 1 << event->index;
        }
    }
    event->arrays >>= 1;
    event->depth--;
    return 1;
}


/* A string is over, between `start` and `at`: what it says is of no matter if it is a value, and the event no end. */
static void
note_value(headrace_event_t *event, u_char *start, u_char *at, u_char *end)
{
    if (end - at > 1 && (at[1] == ',' || at[1] == '}' || at[1] == ']')) {
        event->differs.data = start;
        event->differs.len = at - start;
    }
}


/* Reads a line of an object; returns where the line ends, or `end`. */
static u_char *
read_object(headrace_event_t *event, u_char *at, u_char *end, u_char *differs)
{
    u_char  *start;

    for (; at < end; at++) {
        switch (*at) {

        case '"':
            start = at + 1;
            at = string_end(start, end);
            if (at == end) {
                return end;
            }
            if (*at != '"') {
                return skip(event, at, end, 1);
            }
            if (event->depth == 1 || event->depth == 3) {
                note_key(event, start, at, end);
            }
            if (start <= differs && differs <= at) {
                note_value(event, start, at, end);
            }
            break;

        case '{':
        case '[':
            if (event->depth == DEEPEST) {
                return skip(event, at, end, 0);
            }
            open_bracket(event, *at == '[');
            break;

        case '}':
        case ']':
            if (!close_bracket(event, *at == ']')) {
                return skip(event, at, end, 1);
            }
            if (event->depth == 0) {
                at = skip_space(at + 1, end);
                return at == end || *at == '\n' || *at == '\r' ? at : skip(event, at, end, 1);
            }
            break;

        case '\n':
        case '\r':
            return at;

        default:
            break;
        }
    }
    return end;
}


/* Reads what follows `data:`. What is no object may be another value; only what can be none is found. */
static u_char *
read_data(headrace_event_t *event, u_char *at, u_char *end, u_char *differs)
{
    if (event->skipped) {
        return line_end(at, end);
    }
    if (event->depth == 0) {
        at = skip_space(at, end);
        if (at == end || *at == '\n' || *at == '\r') {
            return at;
        }
        if (event->begun) {
            return skip(event, at, end, 1);
        }
        if (*at != '{') {
            return skip(event, at, end, memchr(OTHERS, *at, sizeof(OTHERS) - 1) == NULL);
        }
        event->begun = 1;
    }
    return read_object(event, at, end, differs);
}


/*
 * Reads the event that begins at `at`. Returns where the next one begins; NULL if this one is not complete. `differs`
 * is where it becomes another than the usual one, or NULL.
 */
u_char *
headrace_read_event(u_char *at, u_char *end, u_char *differs, headrace_event_t *event)
{
    ngx_flag_t  alone = 0;      /* the line before ended with a carriage return alone */

    ngx_memzero(event, sizeof(headrace_event_t));
    while (at < end && *at != '\n' && *at != '\r') {
        if (end - at >= 5 && ngx_memcmp(at, "data:", 5) == 0) {
            at = read_data(event, at + 5, end, differs);
        } else {
            at = line_end(at, end);
        }
        if (end - at < 2) {
            return NULL;
        }
        alone = *at == '\r' && at[1] != '\n';
        at += *at == '\r' && at[1] == '\n' ? 2 : 1;
    }
    if (at == end || (*at == '\r' && end - at == 1 && !alone)) {
        return NULL;
    }
    event->malformed |= event->depth != 0 && !event->skipped;
    return *at == '\r' && end - at > 1 && at[1] == '\n' ? at + 2 : at + 1;
}


/*
 * Where the event ends that begins at `at`, if it is the usual one with something else in the one string; else NULL. It
 * need not be read: most events of a stream differ from those before by what is said, and by nothing else.
 */
u_char *
headrace_usual_end(headrace_usual_t *usual, u_char *at, u_char *end)
{
    size_t  rest = usual->len - usual->end;

    if (usual->end == 0 || (size_t) (end - at) < usual->start + rest
        || ngx_memcmp(at, usual->data, usual->start) != 0)
    {
        return NULL;
    }
    at = string_end(at + usual->start, end);
    if ((size_t) (end - at) < rest || ngx_memcmp(at, usual->data + usual->end, rest) != 0) {
        return NULL;
    }
    return at + rest;
}


/* Where an event becomes another than the usual one; NULL if there is none. */
u_char *
headrace_differs(headrace_usual_t *usual, u_char *at, u_char *end)
{
    size_t  i, length = ngx_min(usual->len, (size_t) (end - at));

    for (i = 0; length - i >= 8 && ngx_memcmp(at + i, usual->data + i, 8) == 0; i += 8) { /* void */ }
    for (; i < length && at[i] == usual->data[i]; i++) { /* void */ }
    return usual->len ? at + i : NULL;
}


/* Remembers an event, which has been read and is shown, for those that come: not one that tells of an end. */
void
headrace_note_usual(headrace_usual_t *usual, headrace_event_t *event, u_char *at, u_char *end)
{
    if (usual->data == NULL || end - at > HEADRACE_USUAL || end - at < 2 || ngx_memcmp(end - 2, "\n\n", 2) != 0
        || !event->begun || event->finished || event->error || event->aborted || event->malformed)
    {
        return;
    }
    ngx_memcpy(usual->data, at, end - at);
    usual->len = end - at;
    usual->start = event->differs.data != NULL ? (size_t) (event->differs.data - at) : 0;
    usual->end = event->differs.data != NULL ? usual->start + event->differs.len : 0;
}


/* Where the event ends of which `line` says how far it has come; NULL if it goes on. For those that come in parts. */
u_char *
headrace_event_end(headrace_line_e *line, u_char *at, u_char *end)
{
    for (; at < end; at++) {
        if (*line == line_blank) {
            *line = line_ended;
            return *at == '\n' ? at + 1 : at;
        }
        if (*at != '\n' && *at != '\r') {
            *line = line_inside;
        } else if (*line == line_ended && *at == '\r') {
            *line = line_blank;
        } else if (*line == line_ended || (*line == line_carriage && *at == '\r')) {
            *line = line_ended;
            return at + 1;
        } else {
            *line = *at == '\r' ? line_carriage : line_ended;
        }
    }
    return NULL;
}
