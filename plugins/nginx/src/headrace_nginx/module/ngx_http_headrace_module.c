/*
 * Watches replies that nginx delivers without the core: what replies.js does and more, without a script's cost per
 * piece.
 *
 *   headrace_watch VALUE;       what is wanted of a location's replies: usage, hide or end; empty: nothing. For a stream
 *                               also: how many answers it has, for how many milliseconds it may be silent, and in
 *                               which dialect, if its events have types
 *   headrace_failed VALUE;      not empty: a backend failed before, and no copy of its challenge is answered
 *   headrace_events BROKEN UNFINISHED FAILED MALFORMED;
 *                               the events that end a stream that the backend broke off, or did not finish, in which it
 *                               told of an error, or said what is no JSON
 *   headrace_dialect NAME LAST FAILS COUNTS BROKEN UNFINISHED FAILED MALFORMED;
 *                               the same for streams whose events have types, with variables, and which types, with
 *                               commas between, come last, tell of an error, and tell of tokens; with no such, those
 *                               are told as `usage`
 *   $headrace_seen              for the report: what was seen, as JSON
 *
 * A piece that is passed on as it is, as almost all are, is read once, or only compared with the one before, and its
 * last bytes are copied. Memory per reply does not depend on its length. Pieces are only rebuilt where an event is left
 * out or comes in parts; nginx's `shadow` buffers keep the backend waiting while a slow client reads them.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "headrace_events.h"

#define KEPT 4096           /* bytes of a reply's end that are looked at */
#define HELD 262144         /* bytes of an unfinished event that are kept back */
#define FIRST_HELD 4096     /* that there is room for at first */
#define FAREWELL 2000       /* milliseconds for which a stream that has said all is waited for */
#define USAGE_BYTES 1024    /* reported of a usage object */
#define USAGE_TRIES 64
#define NOTES 2             /* types of events that tell of tokens */
#define NOTE_BYTES 2048     /* of such an event: a longer one is not kept */
#define REPORT_BYTES 256    /* but for what is told of tokens */

typedef enum {
    mode_none = 0,
    mode_usage,
    mode_hide,
    mode_end
} mode_e;

typedef struct {
    ngx_http_complex_value_t  *watch;
    ngx_http_complex_value_t  *failed;
} loc_conf_t;

typedef enum {
    end_well = 0,
    end_broken,
    end_unfinished,
    end_failed,
    end_malformed
} end_e;

typedef struct {
    ngx_str_t                 name;
    ngx_str_t                 last;
    ngx_str_t                 fails;
    ngx_str_t                 counts;
    ngx_http_complex_value_t  events[4];
} dialect_t;

typedef struct {
    ngx_str_t    events[4];     /* for the others */
    ngx_array_t  dialects;      /* dialect_t; without elements: not set up */
} main_conf_t;

typedef struct {
    mode_e        mode;
    ngx_uint_t    events;
    off_t         size;         /* bytes passed on */
    uint64_t      first;        /* milliseconds since 1970 of the first piece */
    unsigned      stream:1;
    unsigned      cut:1;
    unsigned      unfinished:1;
    unsigned      finished:1;   /* cut, and yet all was said */
    unsigned      ended:1;
    unsigned      loose:1;      /* in an event that is too long to be kept back */
    unsigned      loose_last:1; /* it is the last one, once it has come */
    unsigned      said_last:1;  /* that one of its dialect has come */
    unsigned      keepalive:1;  /* whether the client's connection was to be kept */
    end_e         end;          /* how the stream ends, or has to */
    ngx_uint_t    answers;      /* that the stream has; 0: unknown */
    uint64_t      reasons;      /* a bit for each that has given its finish reason */
    dialect_t    *dialect;      /* NULL: the events have no types */
    ngx_str_t     notes[NOTES]; /* the newest event of each type that tells of tokens */
    ngx_msec_t    idle;         /* 0: unknown */
    ngx_http_upstream_conf_t  *limits;
    u_char       *tail;         /* of 2 * KEPT bytes */
    size_t        tail_size;
    ngx_str_t     early;        /* the usage in the first piece of a reply that is no stream: some say it first */
    u_char       *held;         /* the beginning of an event, of `held_room` bytes */
    size_t        held_size;
    size_t        held_room;
    headrace_line_e  line;      /* how far that event has come, or the one that is too long */
    headrace_usual_t  usual;
    ngx_chain_t  *given;        /* the only link of what has come, if nothing is to follow it: it goes on itself */
    ngx_chain_t  *free;
    ngx_chain_t  *busy;
} watch_t;

static ngx_int_t  add_variables(ngx_conf_t *cf);
static ngx_int_t  init(ngx_conf_t *cf);
static void      *create_main_conf(ngx_conf_t *cf);
static void      *create_loc_conf(ngx_conf_t *cf);
static char      *merge_loc_conf(ngx_conf_t *cf, void *parent, void *child);
static char      *set_events(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
static char      *add_dialect(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

static ngx_http_output_header_filter_pt  next_header_filter;
static ngx_http_output_body_filter_pt    next_body_filter;

static ngx_command_t  commands[] = {
    { ngx_string("headrace_watch"), NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET, offsetof(loc_conf_t, watch), NULL },
    { ngx_string("headrace_failed"), NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET, offsetof(loc_conf_t, failed), NULL },
    { ngx_string("headrace_events"), NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE4, set_events,
      NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL },
    { ngx_string("headrace_dialect"), NGX_HTTP_MAIN_CONF|NGX_CONF_1MORE, add_dialect,
      NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL },
    ngx_null_command
};

static ngx_http_module_t  context = {
    add_variables, init, create_main_conf, NULL, NULL, NULL, create_loc_conf, merge_loc_conf
};

ngx_module_t  ngx_http_headrace_module = {
    NGX_MODULE_V1, &context, commands, NGX_HTTP_MODULE, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NGX_MODULE_V1_PADDING
};


/* --- what bytes say ------------------------------------------------------------------------------------------- */

static u_char *
find(u_char *from, u_char *end, const char *what)
{
    size_t   length = ngx_strlen(what);
    u_char  *at;

    while ((size_t) (end - from) >= length) {
        at = memchr(from, what[0], end - from - length + 1);
        if (at == NULL || ngx_memcmp(at, what, length) == 0) {
            return at;
        }
        from = at + 1;
    }
    return NULL;
}


static u_char *
skip_space(u_char *at, u_char *end)
{
    while (at < end && (*at == ' ' || (*at >= '\t' && *at <= '\r'))) {
        at++;
    }
    return at;
}


static u_char *
without_space(u_char *start, u_char *end)
{
    while (end > start && (end[-1] == ' ' || (end[-1] >= '\t' && end[-1] <= '\r'))) {
        end--;
    }
    return end;
}


static ngx_flag_t
ends_with(u_char *start, u_char *end, const char *what)
{
    size_t  length = ngx_strlen(what);

    return (size_t) (end - start) >= length && ngx_memcmp(end - length, what, length) == 0;
}


/* Where what follows `"key" :` begins; NULL if that is not what stands at `at`. */
static u_char *
after_key(u_char *at, u_char *end, const char *key)
{
    size_t  length = ngx_strlen(key);

    if ((size_t) (end - at) < length || ngx_memcmp(at, key, length) != 0) {
        return NULL;
    }
    at = skip_space(at + length, end);
    return at < end && *at == ':' ? skip_space(at + 1, end) : NULL;
}


/* An event whose JSON begins with an error: vLLM sends [DONE] after one. */
static ngx_flag_t
has_error(u_char *start, u_char *end)
{
    u_char  *at, *value;

    for (at = start; (at = find(at, end, "data:")) != NULL; at++) {
        if (at > start && at[-1] != '\n' && at[-1] != '\r') {
            continue;
        }
        value = skip_space(at + 5, end);
        if (value == end || *value != '{') {
            continue;
        }
        value = after_key(skip_space(value + 1, end), end, "\"error\"");
        if (value != NULL && value < end && (*value == '"' || *value == '{')) {
            return 1;
        }
    }
    return 0;
}


/* Whether there is a finish reason that begins so. */
static ngx_flag_t
has_finish_reason(u_char *start, u_char *end, const char *begin)
{
    size_t   length = ngx_strlen(begin);
    u_char  *at, *value;

    for (at = start; (at = find(at, end, "\"finish_reason\"")) != NULL; at++) {
        value = after_key(at, end, "\"finish_reason\"");
        if (value != NULL && (size_t) (end - value) >= length && ngx_memcmp(value, begin, length) == 0) {
            return 1;
        }
    }
    return 0;
}


/* The last usage object. The word alone may be a token, or a null. */
static ngx_str_t
last_usage(u_char *start, u_char *end)
{
    u_char      *at = end, *value;
    ngx_uint_t   tries;
    ngx_str_t    none = ngx_null_string, usage;

    for (tries = 0; tries < USAGE_TRIES; tries++) {
        do {
            if (at == start) {
                return none;
            }
            at--;
        } while (*at != '"' || end - at < 7 || ngx_memcmp(at, "\"usage\"", 7) != 0);
        for (value = at + 7; value < end && (*value == ':' || *value == ' '); value++) { /* void */ }
        if (value < end && *value == '{') {
            usage.data = at;
            usage.len = ngx_min(end - at, USAGE_BYTES);
            return usage;
        }
    }
    return none;
}


/* Which of `words`, with commas between, this one is, from 1 on; 0: none of them. */
static ngx_uint_t
place_of(ngx_str_t *word, ngx_str_t *words)
{
    u_char      *at = words->data, *end = words->data + words->len, *comma;
    ngx_uint_t   place;

    for (place = 1; word->len && at < end; place++, at = comma + 1) {
        comma = ngx_strlchr(at, end, ',');
        if (comma == NULL) {
            comma = end;
        }
        if ((size_t) (comma - at) == word->len && ngx_memcmp(at, word->data, word->len) == 0) {
            return place;
        }
    }
    return 0;
}


/* --- one reply ------------------------------------------------------------------------------------------------ */

/* A number after a space, of which nine digits count at least; 0 if there is none. */
static ngx_uint_t
number(u_char **at, u_char *end)
{
    ngx_uint_t  found = 0;

    if (*at < end && **at == ' ') {
        for ((*at)++; *at < end && **at >= '0' && **at <= '9'; (*at)++) {
            if (found < NGX_MAX_INT32_VALUE / 10) {
                found = 10 * found + (**at - '0');
            }
        }
    }
    return found;
}


/* The dialect that follows a space; NULL if we do not know it. */
static dialect_t *
dialect_named(ngx_http_request_t *r, u_char *at, u_char *end)
{
    size_t        length = end - at - 1;
    ngx_uint_t    i;
    dialect_t    *found;
    main_conf_t  *conf = ngx_http_get_module_main_conf(r, ngx_http_headrace_module);

    found = conf->dialects.elts;
    for (i = 0; i < conf->dialects.nelts; i++) {
        if (found[i].name.len == length && ngx_memcmp(found[i].name.data, at + 1, length) == 0) {
            return &found[i];
        }
    }
    ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "headrace: the dialect is not known");
    return NULL;
}


static void
be_told(ngx_str_t *wanted, ngx_http_request_t *r, watch_t *watch)
{
    size_t   length = wanted->len;
    u_char  *end = wanted->data + wanted->len, *at = ngx_strlchr(wanted->data, end, ' ');

    if (at != NULL) {
        length = at - wanted->data;
        watch->answers = number(&at, end);
        watch->idle = number(&at, end);
        if (watch->stream && at < end) {
            watch->dialect = dialect_named(r, at, end);
            if (watch->dialect == NULL) {
                return;
            }
        }
    }
    if (length == 5 && ngx_memcmp(wanted->data, "usage", 5) == 0) {
        watch->mode = mode_usage;
    } else if (length == 4 && ngx_memcmp(wanted->data, "hide", 4) == 0) {
        watch->mode = watch->stream ? mode_hide : mode_usage;
    } else if (length == 3 && ngx_memcmp(wanted->data, "end", 3) == 0) {
        /* chunked: HTTP itself says whether the reply is whole, and nginx tells the core of one that is not */
        watch->mode = mode_end;
        if (!watch->answers && r->upstream && r->upstream->headers_in.transfer_encoding) {
            watch->mode = mode_none;
        }
    }
}


static ngx_flag_t
content_type_is(ngx_http_request_t *r, const char *type)
{
    ngx_str_t  *said = &r->headers_out.content_type;
    size_t      length = ngx_strlen(type);

    return said->len >= length && ngx_strncasecmp(said->data, (u_char *) type, length) == 0;
}


/* A failed backend's challenge, of which nginx has made a copy for the answer of the core. */
static void
drop_challenge(ngx_http_request_t *r)
{
    ngx_uint_t        i;
    ngx_list_part_t  *part;
    ngx_table_elt_t  *header;

    for (part = &r->headers_out.headers.part; part != NULL; part = part->next) {
        header = part->elts;
        for (i = 0; i < part->nelts; i++) {
            if (header[i].key.len == sizeof("WWW-Authenticate") - 1
                && ngx_strncasecmp(header[i].key.data, (u_char *) "WWW-Authenticate", header[i].key.len) == 0)
            {
                header[i].hash = 0;
            }
        }
    }
    r->headers_out.www_authenticate = NULL;
}


static ngx_int_t
header_filter(ngx_http_request_t *r)
{
    loc_conf_t  *conf = ngx_http_get_module_loc_conf(r, ngx_http_headrace_module);
    watch_t     *watch;
    ngx_str_t    wanted, failed = ngx_null_string;

    if (conf->watch == NULL || r != r->main || ngx_http_get_module_ctx(r, ngx_http_headrace_module) != NULL) {
        return next_header_filter(r);
    }
    watch = ngx_pcalloc(r->pool, sizeof(watch_t));
    if (watch == NULL || ngx_http_complex_value(r, conf->watch, &wanted) != NGX_OK
        || (conf->failed != NULL && ngx_http_complex_value(r, conf->failed, &failed) != NGX_OK))
    {
        return NGX_ERROR;
    }
    ngx_http_set_ctx(r, watch, ngx_http_headrace_module);
    if (r->headers_out.status < 200 || r->headers_out.status > 599 || r->http_version == NGX_HTTP_VERSION_9) {
        watch->mode = mode_end;
        watch->cut = watch->ended = 1;
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "headrace: the backend does not speak HTTP/1.1");
        return NGX_ERROR;
    }
    if (failed.len && r->headers_out.status != NGX_HTTP_UNAUTHORIZED) {
        drop_challenge(r);
    }
    watch->stream = r->headers_out.status == NGX_HTTP_OK && content_type_is(r, "text/event-stream");
    watch->keepalive = r->keepalive;
    be_told(&wanted, r, watch);
    if (watch->mode != mode_none) {
        watch->tail = ngx_pnalloc(r->pool, 2 * KEPT);
        if (watch->tail == NULL) {
            return NGX_ERROR;
        }
        r->filter_need_in_memory = 1;
        if (watch->stream) {
            ngx_http_clear_content_length(r);       /* what we leave out or add changes it */
            ngx_http_clear_accept_ranges(r);
        }
    }
    return next_header_filter(r);
}


static void
keep(watch_t *watch, u_char *data, size_t size)
{
    if (size >= KEPT) {
        data += size - KEPT;
        size = KEPT;
        watch->tail_size = 0;
    } else if (watch->tail_size + size > 2 * KEPT) {
        ngx_memmove(watch->tail, watch->tail + watch->tail_size - KEPT, KEPT);
        watch->tail_size = KEPT;
    }
    ngx_memcpy(watch->tail + watch->tail_size, data, size);
    watch->tail_size += size;
}


static void
tail_of(watch_t *watch, u_char **start, u_char **end)
{
    *end = watch->tail + watch->tail_size;
    *start = watch->tail_size > KEPT ? *end - KEPT : watch->tail;
}


/* A link of the chain that goes on, with a buffer of ours of so many bytes; used again once it has been sent. */
static ngx_chain_t *
own_link(ngx_http_request_t *r, watch_t *watch, size_t size)
{
    size_t        capacity = 1024;
    ngx_chain_t  *link, **place;

    while (capacity < size) {           /* few sizes, so that what is free fits */
        capacity *= 2;
    }
    for (place = &watch->free; (link = *place) != NULL; place = &link->next) {
        if ((size_t) (link->buf->end - link->buf->start) >= size) {
            *place = link->next;
            break;
        }
    }
    if (link == NULL) {
        link = ngx_alloc_chain_link(r->pool);
        if (link == NULL) {
            return NULL;
        }
        link->buf = ngx_create_temp_buf(r->pool, capacity);
        if (link->buf == NULL) {
            return NULL;
        }
    }
    link->next = NULL;
    link->buf->pos = link->buf->last = link->buf->start;
    link->buf->tag = (ngx_buf_tag_t) &ngx_http_headrace_module;
    link->buf->temporary = 1;
    link->buf->recycled = link->buf->flush = link->buf->last_buf = link->buf->last_in_chain = 0;
    link->buf->shadow = NULL;
    return link;
}


/* --- a stream's events ---------------------------------------------------------------------------------------- */

/* From now on the backend may be silent for so long: nginx's own timer sees to it. It may wait that bit longer. */
static void
limit_silence(ngx_http_request_t *r, watch_t *watch, ngx_msec_t idle)
{
    ngx_http_upstream_t  *u = r->upstream;

    if (u == NULL || u->buffering) {
        return;
    }
    if (watch->limits == NULL) {
        watch->limits = ngx_palloc(r->pool, sizeof(ngx_http_upstream_conf_t));
        if (watch->limits == NULL) {
            return;
        }
        *watch->limits = *u->conf;
        u->conf = watch->limits;
    }
    watch->limits->read_timeout = idle + NGX_TIMER_LAZY_DELAY;
}


static ngx_flag_t
all_said(watch_t *watch)
{
    if (watch->dialect != NULL) {
        return watch->said_last;
    }
    return watch->answers && (ngx_uint_t) __builtin_popcountll(watch->reasons) >= watch->answers;
}


static void
say_last(ngx_http_request_t *r, watch_t *watch)
{
    watch->said_last = 1;
    if (watch->idle) {
        limit_silence(r, watch, ngx_min(watch->idle, FAREWELL));
    }
}


/* Keeps an event, from `at` to `end`, that tells of tokens. */
static void
note(ngx_http_request_t *r, ngx_str_t *place, u_char *at, u_char *end)
{
    if (end - at > NOTE_BYTES) {
        return;
    }
    if (place->data == NULL && (place->data = ngx_pnalloc(r->pool, NOTE_BYTES)) == NULL) {
        return;
    }
    ngx_memcpy(place->data, at, end - at);
    place->len = end - at;
}


/* What an event tells by its type. Whether it goes on. */
static ngx_flag_t
look_at_type(ngx_http_request_t *r, watch_t *watch, ngx_str_t *type, u_char *at, u_char *end)
{
    ngx_uint_t   place;
    dialect_t   *dialect = watch->dialect;

    if (place_of(type, &dialect->fails)) {
        watch->end = end_failed;
        return 0;
    }
    if (place_of(type, &dialect->last)) {
        say_last(r, watch);
    }
    place = place_of(type, &dialect->counts);
    if (place && place <= NOTES) {
        note(r, &watch->notes[place - 1], at, end);
    }
    return 1;
}


/* Whether an event, from `at` to `end`, goes on. If it ends the stream, `watch->end` says how. */
static ngx_flag_t
is_shown(ngx_http_request_t *r, watch_t *watch, headrace_event_t *event, u_char *at, u_char *end)
{
    if (event->malformed || event->error || event->aborted) {
        watch->end = event->malformed ? end_malformed : end_failed;
        return 0;
    }
    if (watch->dialect != NULL) {
        return look_at_type(r, watch, &event->type, at, end);
    }
    if (event->finished & ~watch->reasons) {
        watch->reasons |= event->finished;
        if (all_said(watch) && watch->idle) {
            limit_silence(r, watch, ngx_min(watch->idle, FAREWELL));
        }
    }
    return watch->mode != mode_hide || !event->usage || !event->no_choices;
}


/* How much of a piece goes on as it is; `*half`: what follows is the beginning of an event. */
static u_char *
plain_end(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer, ngx_flag_t *half)
{
    u_char            *at = buffer->pos, *next;
    headrace_event_t   event;

    *half = 0;
    if (watch->loose) {
        at = headrace_event_end(&watch->line, at, buffer->last);
        if (at == NULL) {
            return buffer->last;
        }
        watch->loose = 0;
        if (watch->loose_last) {
            say_last(r, watch);
        }
    }
    if (watch->dialect == NULL && watch->usual.data == NULL) {
        watch->usual.data = ngx_pnalloc(r->pool, HEADRACE_USUAL);
    }
    for (; at != buffer->last; at = next) {
        next = headrace_usual_end(&watch->usual, at, buffer->last);
        if (next != NULL) {
            continue;
        }
        next = headrace_read_event(at, buffer->last, headrace_differs(&watch->usual, at, buffer->last), &event);
        if (next == NULL) {
            *half = 1;
            return at;
        }
        if (!is_shown(r, watch, &event, at, next)) {
            return at;
        }
        headrace_note_usual(&watch->usual, &event, at, next);
    }
    return at;
}


/* Keeps back the next part of an event, for if the stream broke now, nothing could be said after it any more. */
static ngx_int_t
hold(ngx_http_request_t *r, watch_t *watch, u_char *data, size_t size)
{
    size_t   room = watch->held_room ? watch->held_room : FIRST_HELD;
    u_char  *more;

    while (room < watch->held_size + size) {
        room *= 2;
    }
    if (room > watch->held_room) {
        more = ngx_palloc(r->pool, room);
        if (more == NULL) {
            return NGX_ERROR;
        }
        if (watch->held != NULL) {
            ngx_memcpy(more, watch->held, watch->held_size);
            ngx_pfree(r->pool, watch->held);
        }
        watch->held = more;
        watch->held_room = room;
    }
    ngx_memcpy(watch->held + watch->held_size, data, size);
    watch->held_size += size;
    return NGX_OK;
}


/* What an event is called in its first line: some tell their type after all else. */
static ngx_str_t
name_of(u_char *at, u_char *end)
{
    ngx_str_t  name = ngx_null_string;

    if (end - at > 6 && ngx_memcmp(at, "event:", 6) == 0) {
        at = skip_space(at + 6, end);
        name.data = at;
        while (at < end && *at > ' ') {
            at++;
        }
        name.len = at - name.data;
    }
    return name;
}


/* An event is too long to be kept back; `at` to `end` is what has come of it. */
static void
let_go(watch_t *watch, u_char *at, u_char *end)
{
    ngx_str_t         type;
    headrace_event_t  event;

    watch->loose = 1;
    if (watch->dialect != NULL) {
        (void) headrace_read_event(at, end, NULL, &event);
        type = event.type.len ? event.type : name_of(at, end);
        watch->loose_last = place_of(&type, &watch->dialect->last) != 0;
    }
}


/* Keeps the beginning of an event back, unless it is too long: then it goes on. Returns the end of what goes on. */
static u_char *
hold_half(ngx_http_request_t *r, watch_t *watch, u_char *at, u_char *end)
{
    if (at == end) {
        return at;
    }
    watch->line = line_ended;
    (void) headrace_event_end(&watch->line, at, end);
    if (end - at > HELD) {
        let_go(watch, at, end);
        return end;
    }
    return hold(r, watch, at, end - at) == NGX_OK ? at : NULL;
}


/* Leaves out of `at` to `end` what does not go on; returns the new end. */
static u_char *
select_events(ngx_http_request_t *r, watch_t *watch, u_char *at, u_char *end)
{
    u_char            *out = at, *next;
    headrace_event_t   event;

    for (; (next = headrace_read_event(at, end, NULL, &event)) != NULL; at = next) {
        if (is_shown(r, watch, &event, at, next)) {
            ngx_memmove(out, at, next - at);
            out += next - at;
        } else if (watch->end) {
            return out;
        }
    }
    next = hold_half(r, watch, at, end);
    if (next == NULL) {
        return NULL;
    }
    ngx_memmove(out, at, next - at);
    return out + (next - at);
}


/*
 * What goes on of a stream's piece, in `*link`: from the first event on that is left out, with what was kept back of
 * the one before. NGX_DECLINED: it is all in `buffer`, which may have become shorter.
 */
static ngx_int_t
choose(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer, ngx_chain_t **link)
{
    u_char      *at = buffer->pos, *start, *end;
    size_t       held = watch->held_size, size = buffer->last - buffer->pos;
    ngx_flag_t   half, complete = 1;

    if (held == 0) {
        at = plain_end(r, watch, buffer, &half);
        if (half) {
            at = hold_half(r, watch, at, buffer->last);
        }
        if (at == NULL) {
            return NGX_ERROR;
        }
        if (half || watch->end || at == buffer->last) {
            buffer->last = at;
            return NGX_DECLINED;
        }
    } else if (headrace_event_end(&watch->line, at, buffer->last) == NULL) {
        if (held + size <= HELD) {
            buffer->pos = buffer->last;
            return hold(r, watch, at, size) == NGX_OK ? NGX_DECLINED : NGX_ERROR;
        }
        complete = 0;
    }
    *link = own_link(r, watch, held + size);
    if (*link == NULL) {
        return NGX_ERROR;
    }
    start = (*link)->buf->start;
    end = held ? ngx_cpymem(start, watch->held, held) : start;
    end = ngx_cpymem(end, buffer->pos, size);
    watch->held_size = 0;
    if (complete) {
        end = select_events(r, watch, start + (at - buffer->pos), end);
        if (end == NULL) {
            return NGX_ERROR;
        }
    } else {
        let_go(watch, start, end);
    }
    (*link)->buf->last = end;
    return NGX_OK;
}


static void
add(watch_t *watch, ngx_chain_t *link, ngx_chain_t ***place)
{
    watch->size += ngx_buf_size(link->buf);
    link->next = NULL;
    **place = link;
    *place = &link->next;
}


static ngx_int_t
add_buffer(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer, ngx_chain_t ***place)
{
    ngx_chain_t  *link = watch->end ? NULL : watch->given;

    if (link == NULL) {
        link = ngx_alloc_chain_link(r->pool);
        if (link == NULL) {
            return NGX_ERROR;
        }
        link->buf = buffer;
    }
    add(watch, link, place);
    return NGX_OK;
}


/* Adds what goes on of a stream's piece. */
static ngx_int_t
pass_on(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer, ngx_chain_t ***place)
{
    ngx_int_t     rc;
    ngx_chain_t  *link = NULL;

    rc = choose(r, watch, buffer, &link);
    if (rc == NGX_ERROR) {
        return NGX_ERROR;
    }
    if (rc == NGX_DECLINED) {
        return buffer->last == buffer->pos ? NGX_OK : add_buffer(r, watch, buffer, place);
    }
    if (link->buf->last == link->buf->pos) {    /* nothing of it is shown */
        buffer->pos = buffer->last;
        link->next = watch->free;
        watch->free = link;
        return NGX_OK;
    }
    link->buf->shadow = buffer;
    link->buf->flush = 1;
    add(watch, link, place);
    return NGX_OK;
}


/* --- a stream's end ------------------------------------------------------------------------------------------- */

/* Whether what was kept back of the last event, which has no end, goes on if the stream is whole: not if it is half. */
static ngx_int_t
look_at_rest(ngx_http_request_t *r, watch_t *watch, size_t *dropped)
{
    size_t             size = watch->held_size;
    headrace_event_t   event;

    if (size == 0) {
        return NGX_OK;
    }
    if (hold(r, watch, (u_char *) "\n\n", 2) != NGX_OK) {
        return NGX_ERROR;
    }
    watch->held_size = 0;
    (void) headrace_read_event(watch->held, watch->held + size + 2, NULL, &event);
    if (event.malformed) {
        *dropped = size;
    } else if (is_shown(r, watch, &event, watch->held, watch->held + size + 2)) {
        watch->held_size = size;
    }
    return NGX_OK;
}


/* Whether a stream that ends with these bytes has said all it had to say. */
static ngx_flag_t
is_complete(watch_t *watch, u_char *start, u_char *end)
{
    u_char  *last = without_space(start, end);

    if (watch->dialect != NULL) {
        return watch->said_last || (watch->loose && watch->loose_last && ends_with(start, last, "}"));
    }
    if (has_error(start, end) || has_finish_reason(start, end, "\"abort\"")) {
        return 0;
    }
    return ends_with(start, last, "[DONE]") || has_finish_reason(start, end, "\"");
}


/* How a stream ends after which nothing comes, if no event of it says so: whether it said all it had to say. */
static ngx_int_t
judge(ngx_http_request_t *r, watch_t *watch)
{
    u_char  *start, *end;
    size_t   dropped = 0;

    if (watch->cut) {
        watch->finished = all_said(watch);      /* its farewell is missing */
        watch->end = watch->finished ? end_well : end_broken;
        watch->held_size = 0;
        return NGX_OK;
    }
    if (look_at_rest(r, watch, &dropped) != NGX_OK) {
        return NGX_ERROR;
    }
    tail_of(watch, &start, &end);
    end -= ngx_min(dropped, (size_t) (end - start));
    if (!watch->end && !is_complete(watch, start, end)) {
        watch->end = end_unfinished;
    }
    return NGX_OK;
}


/* The last link of a stream that is not whole. */
static ngx_chain_t *
ending(ngx_http_request_t *r, watch_t *watch)
{
    main_conf_t  *conf = ngx_http_get_module_main_conf(r, ngx_http_headrace_module);
    ngx_str_t     event = conf->events[watch->end - 1];
    ngx_chain_t  *link;

    if (watch->dialect != NULL
        && ngx_http_complex_value(r, &watch->dialect->events[watch->end - 1], &event) != NGX_OK)
    {
        return NULL;
    }
    link = own_link(r, watch, event.len + 2);
    if (link == NULL) {
        return NULL;
    }
    if (watch->loose) {
        link->buf->last = ngx_cpymem(link->buf->last, "\n\n", 2);     /* half an event must not swallow ours */
    }
    link->buf->last = ngx_cpymem(link->buf->last, event.data, event.len);
    link->buf->flush = link->buf->last_buf = link->buf->last_in_chain = 1;
    watch->unfinished = 1;
    return link;
}


/* The last link of a stream that is whole, with what was kept back. */
static ngx_chain_t *
rest_of(ngx_http_request_t *r, watch_t *watch)
{
    ngx_chain_t  *link;

    if (watch->held_size) {
        link = own_link(r, watch, watch->held_size);
        if (link == NULL) {
            return NULL;
        }
        link->buf->last = ngx_cpymem(link->buf->last, watch->held, watch->held_size);
    } else {
        link = ngx_alloc_chain_link(r->pool);
        if (link == NULL || (link->buf = ngx_calloc_buf(r->pool)) == NULL) {
            return NULL;
        }
    }
    link->buf->last_buf = link->buf->last_in_chain = 1;
    return link;
}


/* Ends a stream for the client. If the backend goes on, nginx is told that nothing more was to come, and leaves it. */
static ngx_int_t
end_stream(ngx_http_request_t *r, watch_t *watch, ngx_chain_t ***place)
{
    ngx_chain_t          *link;
    ngx_http_upstream_t  *u = r->upstream;

    if (!watch->end && judge(r, watch) != NGX_OK) {
        return NGX_ERROR;
    }
    if ((watch->end == end_failed || watch->end == end_malformed) && u != NULL && !u->buffering) {
        u->length = 0;
        u->keepalive = 0;
    }
    link = watch->end ? ending(r, watch) : rest_of(r, watch);
    if (link == NULL) {
        return NGX_ERROR;
    }
    r->keepalive = watch->keepalive;    /* nginx, which gave up, takes the answer for broken off: it is not */
    add(watch, link, place);
    watch->ended = 1;
    return NGX_OK;
}


/* --- pieces ---------------------------------------------------------------------------------------------------- */

/* Whether nothing but the end of the connection says where a JSON reply ends, and it does not look whole. */
static ngx_flag_t
is_torn(ngx_http_request_t *r, watch_t *watch)
{
    u_char               *start, *end;
    ngx_http_upstream_t  *u = r->upstream;

    if (u == NULL || u->headers_in.content_length != NULL || u->headers_in.transfer_encoding != NULL
        || !content_type_is(r, "application/json"))
    {
        return 0;
    }
    tail_of(watch, &start, &end);
    end = without_space(start, end);
    return end == start || (end[-1] != '}' && end[-1] != ']');
}


/* Remembers the usage at the beginning of a reply that is no stream. */
static void
look_early(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer)
{
    ngx_str_t  usage = last_usage(buffer->pos, buffer->last);

    if (usage.len && (watch->early.data = ngx_pnalloc(r->pool, usage.len)) != NULL) {
        ngx_memcpy(watch->early.data, usage.data, usage.len);
        watch->early.len = usage.len;
    }
}


static void
look(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer)
{
    ngx_time_t  *now;

    if (ngx_buf_in_memory(buffer) && buffer->last > buffer->pos) {
        if (watch->first == 0) {
            now = ngx_timeofday();
            watch->first = (uint64_t) now->sec * 1000 + now->msec;
            if (!watch->stream) {
                look_early(r, watch, buffer);
            } else if (watch->idle) {
                limit_silence(r, watch, watch->idle);
            }
        }
        watch->events++;
        keep(watch, buffer->pos, buffer->last - buffer->pos);
    } else if (!buffer->last_buf) {
        /* a head that came alone is flushed; so is what was sent when nginx, done with the backend, gives up */
        watch->cut = r->upstream != NULL && r->upstream->cleanup == NULL;
    }
}


/* Adds to `*place` what goes on of one buffer. */
static ngx_int_t
watch_buffer(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer, ngx_chain_t ***place)
{
    ngx_flag_t  last = buffer->last_buf, empty = !ngx_buf_in_memory(buffer) || buffer->last == buffer->pos;

    look(r, watch, buffer);
    if (!watch->stream) {
        if (last && is_torn(r, watch)) {
            watch->cut = 1;
            ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "headrace: the backend broke off");
            return NGX_ERROR;           /* the client's connection breaks, too */
        }
        return add_buffer(r, watch, buffer, place);
    }
    if (last || watch->cut || !empty) {
        buffer->last_buf = 0;           /* one of ours is the last one */
        if (!empty && pass_on(r, watch, buffer, place) != NGX_OK) {
            return NGX_ERROR;
        }
        return last || watch->cut || watch->end ? end_stream(r, watch, place) : NGX_OK;
    }
    return add_buffer(r, watch, buffer, place);
}


/*
 * What has been sent of our own buffers is free for the next ones, and the pieces they stand for count as sent. nginx's
 * buffers are not remembered: it fills them with the next piece as soon as they are empty.
 */
static void
release(ngx_http_request_t *r, watch_t *watch, ngx_chain_t *sent)
{
    ngx_buf_t    *buffer;
    ngx_chain_t  *link, **place;

    for (place = &watch->busy; *place != NULL; place = &(*place)->next) { /* void */ }
    *place = sent;
    for (place = &watch->busy; (link = *place) != NULL; ) {
        if (link->buf->tag == (ngx_buf_tag_t) &ngx_http_headrace_module) {
            place = &link->next;
            continue;
        }
        *place = link->next;
        ngx_free_chain(r->pool, link);
    }
    while ((link = watch->busy) != NULL && ngx_buf_size(link->buf) == 0) {
        watch->busy = link->next;
        buffer = link->buf;
        if (buffer->shadow != NULL) {
            buffer->shadow->pos = buffer->shadow->last;
            buffer->shadow = NULL;
        }
        link->next = watch->free;
        watch->free = link;
    }
}


static ngx_int_t
body_filter(ngx_http_request_t *r, ngx_chain_t *in)
{
    watch_t      *watch = ngx_http_get_module_ctx(r, ngx_http_headrace_module);
    ngx_int_t     rc;
    ngx_chain_t  *out = NULL, *link, **place = &out;

    if (watch == NULL || watch->mode == mode_none) {
        return next_body_filter(r, in);
    }
    watch->given = in != NULL && in->next == NULL && !in->buf->last_buf ? in : NULL;
    for (link = in; link != NULL; link = link->next) {
        if (watch->ended) {
            link->buf->pos = link->buf->last;   /* more than the end has come */
        } else if (watch_buffer(r, watch, link->buf, &place) != NGX_OK) {
            return NGX_ERROR;
        }
    }
    if (in != NULL && out == NULL) {
        release(r, watch, NULL);
        return NGX_OK;                  /* nothing of it is shown */
    }
    rc = next_body_filter(r, out);
    release(r, watch, out == in ? NULL : out);
    return rc;
}


/* --- what is said of it --------------------------------------------------------------------------------------- */

/* What was said of the tokens: in room for `NOTES * NOTE_BYTES`, if it must be put together. */
static ngx_str_t
told_usage(watch_t *watch, u_char *room)
{
    u_char      *start, *end, *last = room;
    ngx_uint_t   i;
    ngx_str_t    usage = ngx_null_string;

    if (watch->dialect != NULL && watch->dialect->counts.len) {
        for (i = 0; i < NOTES; i++) {
            if (watch->notes[i].len) {
                last = ngx_cpymem(last, watch->notes[i].data, watch->notes[i].len);
            }
        }
        usage.data = room;
        usage.len = last - room;
        return usage;
    }
    if (watch->tail != NULL) {
        tail_of(watch, &start, &end);
        usage = last_usage(start, end);
    }
    return usage.len ? usage : watch->early;
}


static ngx_int_t
seen(ngx_http_request_t *r, ngx_http_variable_value_t *value, uintptr_t data)
{
    u_char     *last, room[NOTES * NOTE_BYTES];
    watch_t    *watch = ngx_http_get_module_ctx(r, ngx_http_headrace_module);
    ngx_str_t   usage, encoded;

    value->valid = 1;
    value->no_cacheable = 1;
    value->not_found = 0;
    value->len = 0;
    value->data = (u_char *) "";
    if (watch == NULL || watch->mode == mode_none) {
        return NGX_OK;
    }
    usage = told_usage(watch, room);
    value->data = ngx_pnalloc(r->pool, REPORT_BYTES + ngx_base64_encoded_length(usage.len));
    if (value->data == NULL) {
        return NGX_ERROR;
    }
    last = ngx_sprintf(value->data,
                       "{\"events\":%ui,\"size\":%O,\"cut\":%s,\"unfinished\":%s,\"finished\":%s,\"why\":\"%s\","
                       "\"first\":%uL,\"usage\":\"",
                       watch->events, watch->size, watch->cut && !watch->finished ? "true" : "false",
                       watch->unfinished ? "true" : "false", watch->finished ? "true" : "false",
                       watch->end == end_failed ? "failed" : watch->end == end_malformed ? "malformed" : "",
                       watch->first);
    encoded.data = last;
    ngx_encode_base64(&encoded, &usage);
    last = encoded.data + encoded.len;
    *last++ = '"';
    *last++ = '}';
    value->len = last - value->data;
    return NGX_OK;
}


/* --- configuration -------------------------------------------------------------------------------------------- */

static ngx_int_t
add_variables(ngx_conf_t *cf)
{
    ngx_str_t             name = ngx_string("headrace_seen");
    ngx_http_variable_t  *variable = ngx_http_add_variable(cf, &name, NGX_HTTP_VAR_NOCACHEABLE);

    if (variable == NULL) {
        return NGX_ERROR;
    }
    variable->get_handler = seen;
    return NGX_OK;
}


static ngx_int_t
init(ngx_conf_t *cf)
{
    next_header_filter = ngx_http_top_header_filter;
    ngx_http_top_header_filter = header_filter;
    next_body_filter = ngx_http_top_body_filter;
    ngx_http_top_body_filter = body_filter;
    return NGX_OK;
}


static void *
create_main_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(main_conf_t));
}


static void *
create_loc_conf(ngx_conf_t *cf)
{
    return ngx_pcalloc(cf->pool, sizeof(loc_conf_t));
}


static char *
merge_loc_conf(ngx_conf_t *cf, void *parent, void *child)
{
    loc_conf_t  *before = parent, *conf = child;

    if (conf->watch == NULL) {
        conf->watch = before->watch;
        conf->failed = before->failed;
    }
    return NGX_CONF_OK;
}


static char *
set_events(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    main_conf_t  *events = conf;
    ngx_str_t    *value = cf->args->elts;

    if (events->events[0].len) {
        return "is duplicate";
    }
    ngx_memcpy(events->events, value + 1, sizeof(events->events));
    return NGX_CONF_OK;
}


/* NAME LAST FAILS COUNTS and the events */
static char *
add_dialect(ngx_conf_t *cf, ngx_command_t *cmd, void *conf)
{
    main_conf_t                       *main = conf;
    dialect_t                         *dialect;
    ngx_str_t                         *value = cf->args->elts;
    ngx_uint_t                         i;
    ngx_http_compile_complex_value_t   compile;

    if (cf->args->nelts != 9) {
        return "has not eight values";
    }
    if (main->dialects.elts == NULL && ngx_array_init(&main->dialects, cf->pool, 4, sizeof(dialect_t)) != NGX_OK) {
        return NGX_CONF_ERROR;
    }
    dialect = ngx_array_push(&main->dialects);
    if (dialect == NULL) {
        return NGX_CONF_ERROR;
    }
    ngx_memzero(dialect, sizeof(dialect_t));
    dialect->name = value[1];
    dialect->last = value[2];
    dialect->fails = value[3];
    dialect->counts = value[4];
    for (i = 0; i < 4; i++) {
        ngx_memzero(&compile, sizeof(ngx_http_compile_complex_value_t));
        compile.cf = cf;
        compile.value = &value[5 + i];
        compile.complex_value = &dialect->events[i];
        if (ngx_http_compile_complex_value(&compile) != NGX_OK) {
            return NGX_CONF_ERROR;
        }
    }
    return NGX_CONF_OK;
}
