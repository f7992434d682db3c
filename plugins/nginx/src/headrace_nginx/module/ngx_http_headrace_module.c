/*
 * Watches replies that nginx delivers without the core: what replies.js does, without a script's cost per piece.
 *
 *   headrace_watch VALUE;               what is wanted of a location's replies: usage, hide or end; empty: nothing
 *   headrace_failed VALUE;              not empty: a backend failed before, and no copy of its challenge is answered
 *   headrace_events BROKEN UNFINISHED;  the events that end a stream that the backend broke off, or did not finish
 *   $headrace_seen                      for the report: what was seen, as JSON
 *
 * A piece that is passed on as it is costs a copy of its last bytes. Memory per reply does not depend on its length.
 * Pieces are only rebuilt where an event that nobody asked for is left out; nginx's `shadow` buffers keep the backend
 * waiting while a slow client reads them.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#define KEPT 4096           /* bytes of a reply's end that are looked at */
#define HELD 16384          /* bytes of an unfinished event that are kept back: no usage is so long */
#define USAGE_BYTES 1024    /* reported of a usage object */
#define USAGE_TRIES 64
#define REPORT_BYTES (160 + (USAGE_BYTES + 2) / 3 * 4)

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

typedef struct {
    ngx_str_t  broken;
    ngx_str_t  unfinished;
} main_conf_t;

typedef struct {
    mode_e        mode;
    ngx_uint_t    events;
    off_t         size;         /* bytes passed on */
    uint64_t      first;        /* milliseconds since 1970 of the first piece */
    unsigned      stream:1;
    unsigned      cut:1;
    unsigned      unfinished:1;
    unsigned      ended:1;
    u_char       *tail;         /* of 2 * KEPT bytes */
    size_t        tail_size;
    ngx_str_t     early;        /* the usage in the first piece of a reply that is no stream: some say it first */
    u_char       *held;         /* of HELD bytes */
    size_t        held_size;
    ngx_chain_t  *free;
    ngx_chain_t  *busy;
} watch_t;

static ngx_int_t  add_variables(ngx_conf_t *cf);
static ngx_int_t  init(ngx_conf_t *cf);
static void      *create_main_conf(ngx_conf_t *cf);
static void      *create_loc_conf(ngx_conf_t *cf);
static char      *merge_loc_conf(ngx_conf_t *cf, void *parent, void *child);
static char      *set_events(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);

static ngx_http_output_header_filter_pt  next_header_filter;
static ngx_http_output_body_filter_pt    next_body_filter;

static ngx_command_t  commands[] = {
    { ngx_string("headrace_watch"), NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET, offsetof(loc_conf_t, watch), NULL },
    { ngx_string("headrace_failed"), NGX_HTTP_LOC_CONF|NGX_CONF_TAKE1, ngx_http_set_complex_value_slot,
      NGX_HTTP_LOC_CONF_OFFSET, offsetof(loc_conf_t, failed), NULL },
    { ngx_string("headrace_events"), NGX_HTTP_MAIN_CONF|NGX_CONF_TAKE2, set_events,
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


static ngx_flag_t
has_finish_reason(u_char *start, u_char *end)
{
    u_char  *at, *value;

    for (at = start; (at = find(at, end, "\"finish_reason\"")) != NULL; at++) {
        value = after_key(at, end, "\"finish_reason\"");
        if (value != NULL && value < end && *value == '"') {
            return 1;
        }
    }
    return 0;
}


/* Whether an event tells nothing but a usage: its list of choices is empty. */
static ngx_flag_t
is_usage_alone(u_char *start, u_char *end)
{
    u_char  *at, *value;

    if (find(start, end, "\"usage\"") == NULL) {
        return 0;
    }
    for (at = start; (at = find(at, end, "\"choices\"")) != NULL; at++) {
        value = after_key(at, end, "\"choices\"");
        if (value != NULL && value < end && *value == '[') {
            value = skip_space(value + 1, end);
            if (value < end && *value == ']') {
                return 1;
            }
        }
    }
    return 0;
}


/* Where the event that begins at `start` ends; NULL if it does not. */
static u_char *
event_end(u_char *start, u_char *end)
{
    u_char  *plain = find(start, end, "\n\n");
    u_char  *wide = find(start, plain ? ngx_min(plain + 3, end) : end, "\r\n\r\n");     /* one that begins earlier */

    return wide ? wide + 4 : plain ? plain + 2 : NULL;
}


/* Whether a piece ends with an event and tells no usage. */
static ngx_flag_t
is_visible(ngx_buf_t *buffer)
{
    return ends_with(buffer->pos, buffer->last, "\n\n") && find(buffer->pos, buffer->last, "\"usage\"") == NULL;
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


/* --- one reply ------------------------------------------------------------------------------------------------ */

static mode_e
mode_of(ngx_str_t *wanted, ngx_http_request_t *r, watch_t *watch)
{
    if (wanted->len == 5 && ngx_memcmp(wanted->data, "usage", 5) == 0) {
        return mode_usage;
    }
    if (wanted->len == 4 && ngx_memcmp(wanted->data, "hide", 4) == 0) {
        return watch->stream ? mode_hide : mode_usage;
    }
    if (wanted->len == 3 && ngx_memcmp(wanted->data, "end", 3) == 0) {
        /* chunked: HTTP itself says whether the reply is whole, and nginx tells the core of one that is not */
        return r->upstream && r->upstream->headers_in.transfer_encoding ? mode_none : mode_end;
    }
    return mode_none;
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
    watch->mode = mode_of(&wanted, r, watch);
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


/*
 * The piece in `buffer` without the events that tell nothing but a usage the client did not ask for, in `*link`, which
 * may then be empty. What may become such an event is kept back until it has come. NGX_DECLINED: it goes as it is.
 */
static ngx_int_t
visible(ngx_http_request_t *r, watch_t *watch, ngx_buf_t *buffer, ngx_flag_t last, ngx_chain_t **link)
{
    u_char  *end, *start, *next, *out;
    size_t   rest, size = ngx_buf_in_memory(buffer) ? buffer->last - buffer->pos : 0;

    if (watch->held_size == 0 && (size == 0 || is_visible(buffer))) {
        return NGX_DECLINED;
    }
    *link = own_link(r, watch, watch->held_size + size);
    if (*link == NULL) {
        return NGX_ERROR;
    }
    start = out = (*link)->buf->start;
    end = watch->held_size ? ngx_cpymem(start, watch->held, watch->held_size) : start;
    end = size ? ngx_cpymem(end, buffer->pos, size) : end;
    watch->held_size = 0;
    for (; (next = event_end(start, end)) != NULL; start = next) {
        if (!is_usage_alone(start, next)) {
            ngx_memmove(out, start, next - start);
            out += next - start;
        }
    }
    rest = end - start;
    if (last || rest > HELD) {
        ngx_memmove(out, start, rest);
        out += rest;
    } else if (rest) {
        if (watch->held == NULL && (watch->held = ngx_pnalloc(r->pool, HELD)) == NULL) {
            return NGX_ERROR;
        }
        ngx_memcpy(watch->held, start, rest);
        watch->held_size = rest;
    }
    (*link)->buf->last = out;
    return NGX_OK;
}


/* Whether a stream said all it had to say; else the event to add is in `*event`. */
static ngx_flag_t
is_whole(ngx_http_request_t *r, watch_t *watch, ngx_str_t *event)
{
    u_char       *start, *end, *text_end;
    main_conf_t  *conf = ngx_http_get_module_main_conf(r, ngx_http_headrace_module);

    tail_of(watch, &start, &end);
    text_end = without_space(start, end);
    if (!watch->cut && !has_error(start, end)
        && (ends_with(start, text_end, "[DONE]") || has_finish_reason(start, end)))
    {
        return 1;
    }
    *event = watch->cut ? conf->broken : conf->unfinished;
    return 0;
}


/* The last link of a stream that is not whole. */
static ngx_chain_t *
ending(ngx_http_request_t *r, watch_t *watch, ngx_str_t *event)
{
    u_char       *start, *end;
    ngx_buf_t    *buffer;
    ngx_chain_t  *link = own_link(r, watch, event->len + 2);

    if (link == NULL) {
        return NULL;
    }
    tail_of(watch, &start, &end);
    buffer = link->buf;
    if (!ends_with(start, end, "\n\n") && !ends_with(start, end, "\r\n\r\n") && !ends_with(start, end, "\r\r")) {
        *buffer->last++ = '\n';     /* half an event must not swallow ours */
        *buffer->last++ = '\n';
    }
    buffer->last = ngx_cpymem(buffer->last, event->data, event->len);
    buffer->flush = buffer->last_buf = buffer->last_in_chain = 1;
    watch->size += buffer->last - buffer->pos;
    watch->unfinished = watch->ended = 1;
    return link;
}


/* The last link of a reply whose last piece was rebuilt. */
static ngx_chain_t *
nothing_more(ngx_http_request_t *r)
{
    ngx_chain_t  *link = ngx_alloc_chain_link(r->pool);

    if (link == NULL || (link->buf = ngx_calloc_buf(r->pool)) == NULL) {
        return NULL;
    }
    link->buf->last_buf = link->buf->last_in_chain = 1;
    link->next = NULL;
    return link;
}


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
    size_t        size = ngx_buf_in_memory(buffer) ? buffer->last - buffer->pos : 0;
    ngx_int_t     rc = NGX_DECLINED;
    ngx_str_t     event = ngx_null_string;
    ngx_flag_t    last;
    ngx_chain_t  *link = NULL;

    look(r, watch, buffer);
    if (buffer->last_buf && !watch->stream && is_torn(r, watch)) {
        watch->cut = 1;
        ngx_log_error(NGX_LOG_ERR, r->connection->log, 0, "headrace: the backend broke off");
        return NGX_ERROR;               /* the client's connection breaks, too */
    }
    last = buffer->last_buf || watch->cut;
    if (watch->stream && last) {
        is_whole(r, watch, &event);
    }
    if (watch->mode == mode_hide) {
        rc = visible(r, watch, buffer, last, &link);
        if (rc == NGX_ERROR) {
            return NGX_ERROR;
        }
    }
    if (rc == NGX_OK && link->buf->last == link->buf->pos) {    /* nothing of it is shown */
        buffer->pos = buffer->last;
        link->next = watch->free;
        watch->free = link;
        link = buffer->last_buf && event.len == 0 ? nothing_more(r) : NULL;
        if (link == NULL && buffer->last_buf && event.len == 0) {
            return NGX_ERROR;
        }
    } else if (rc == NGX_OK) {
        watch->size += link->buf->last - link->buf->pos;
        link->buf->shadow = size ? buffer : NULL;
        link->buf->flush = 1;
        link->buf->last_buf = link->buf->last_in_chain = buffer->last_buf && event.len == 0;
    } else if (size || event.len == 0) {
        link = ngx_alloc_chain_link(r->pool);
        if (link == NULL) {
            return NGX_ERROR;
        }
        if (event.len) {
            buffer->last_buf = 0;       /* ours is */
        }
        link->buf = buffer;
        link->next = NULL;
        watch->size += size;
    }
    if (link != NULL) {
        **place = link;
        *place = &link->next;
    }
    if (event.len) {
        link = ending(r, watch, &event);
        if (link == NULL) {
            return NGX_ERROR;
        }
        **place = link;
        *place = &link->next;
    }
    return NGX_OK;
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


/* Whether every piece can go on as it is. */
static ngx_flag_t
all_plain(watch_t *watch, ngx_chain_t *in)
{
    if (watch->mode == mode_hide && watch->held_size) {
        return 0;
    }
    for (; in != NULL; in = in->next) {
        if (in->buf->last_buf || !ngx_buf_in_memory(in->buf) || in->buf->last == in->buf->pos
            || (watch->mode == mode_hide && !is_visible(in->buf)))
        {
            return 0;
        }
    }
    return 1;
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
    if (in != NULL && !watch->ended && all_plain(watch, in)) {
        for (link = in; link != NULL; link = link->next) {
            look(r, watch, link->buf);
            watch->size += link->buf->last - link->buf->pos;
        }
        rc = next_body_filter(r, in);
        release(r, watch, NULL);
        return rc;
    }
    for (link = in; link != NULL && !watch->ended; link = link->next) {
        if (watch_buffer(r, watch, link->buf, &place) != NGX_OK) {
            return NGX_ERROR;
        }
    }
    if (in != NULL && out == NULL) {
        release(r, watch, NULL);
        return NGX_OK;                  /* nothing of it is shown, or more than the end has come */
    }
    rc = next_body_filter(r, out);
    release(r, watch, out);
    return rc;
}


/* --- what is said of it --------------------------------------------------------------------------------------- */

static ngx_int_t
seen(ngx_http_request_t *r, ngx_http_variable_value_t *value, uintptr_t data)
{
    u_char     *start = NULL, *end = NULL, *last;
    watch_t    *watch = ngx_http_get_module_ctx(r, ngx_http_headrace_module);
    ngx_str_t   usage = ngx_null_string, encoded;

    value->valid = 1;
    value->no_cacheable = 1;
    value->not_found = 0;
    value->len = 0;
    value->data = (u_char *) "";
    if (watch == NULL || watch->mode == mode_none) {
        return NGX_OK;
    }
    value->data = ngx_pnalloc(r->pool, REPORT_BYTES);
    if (value->data == NULL) {
        return NGX_ERROR;
    }
    if (watch->tail != NULL) {
        tail_of(watch, &start, &end);
        usage = last_usage(start, end);
    }
    if (usage.len == 0) {
        usage = watch->early;
    }
    last = ngx_sprintf(value->data, "{\"events\":%ui,\"size\":%O,\"cut\":%s,\"unfinished\":%s,\"first\":%uL,\"usage\":\"",
                       watch->events, watch->size, watch->cut ? "true" : "false", watch->unfinished ? "true" : "false",
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

    if (events->broken.len) {
        return "is duplicate";
    }
    events->broken = value[1];
    events->unfinished = value[2];
    return NGX_CONF_OK;
}
