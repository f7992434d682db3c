/* Events of a stream: where they end, and what they say. */

#ifndef HEADRACE_EVENTS_H
#define HEADRACE_EVENTS_H

#include <ngx_config.h>
#include <ngx_core.h>

typedef enum {
    line_ended = 0,     /* so an event begins */
    line_inside,
    line_carriage,      /* after a carriage return: a line feed may belong to it */
    line_blank          /* the same after a blank line's */
} headrace_line_e;

typedef struct {
    uint64_t   finished;        /* a bit for each answer that gives its finish reason */
    ngx_str_t  type;            /* what it says under this key, as it stands there */
    ngx_str_t  differs;         /* the value, a string, in which it differs from another event; NULL: in no such */
    unsigned   error:1;         /* it tells of an error */
    unsigned   aborted:1;       /* the backend did not finish an answer: vLLM's finish reason when it is stopped */
    unsigned   malformed:1;     /* it is no JSON */
    unsigned   usage:1;
    unsigned   no_choices:1;    /* its list of choices is empty */

    unsigned   begun:1;         /* the rest is how far it has been read */
    unsigned   skipped:1;
    unsigned   reason:1;
    unsigned   abort:1;         /* that reason is no end */
    u_char     depth;
    u_char     index;
    uint64_t   arrays;
} headrace_event_t;

/* An event that says nothing of its stream's end, with the string that is another in the next one. */
typedef struct {
    u_char  *data;              /* with room for HEADRACE_USUAL bytes; NULL: none yet */
    size_t   len;
    size_t   start;             /* of that string in it */
    size_t   end;               /* 0: there is no such string */
} headrace_usual_t;

#define HEADRACE_USUAL 1024

u_char *headrace_read_event(u_char *at, u_char *end, u_char *differs, headrace_event_t *event);
u_char *headrace_usual_end(headrace_usual_t *usual, u_char *at, u_char *end);
u_char *headrace_differs(headrace_usual_t *usual, u_char *at, u_char *end);
void headrace_note_usual(headrace_usual_t *usual, headrace_event_t *event, u_char *at, u_char *end);
u_char *headrace_event_end(headrace_line_e *line, u_char *at, u_char *end);

#endif
