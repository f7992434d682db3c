// Edits requests and watches replies that nginx delivers without the core.
// In memory: the last bytes of a reply, never the whole of it.

const KEPT = 4096, ROOM = 16384;
const USAGE = Buffer.from('"usage"');
const ERROR_EVENT = /(^|[\r\n])data:\s*\{\s*"error"\s*:\s*["{]/;
const FINISHED = /"finish_reason"\s*:\s*"/;
const NO_CHOICES = /"choices"\s*:\s*\[\s*\]/;
const EVENT_END = /(\n\n|\r\n\r\n|\r\r)$/;

let mode = null;      // what the core wants of this reply: usage, hide, end; empty: nothing
let stream = false;   // whether it is an event stream
let tail = null, filled = 0;
let events = 0, size = 0, cut = false;
let held = null;      // the beginning of an event, until it can be said whether it is shown

// The client's body with what the core changes in it.
function body(r) {
    const given = r.requestBuffer, parts = [];
    let at = 0;
    JSON.parse(r.variables.headrace_edits).forEach(edit => {
        parts.push(given.slice(at, edit[0]), Buffer.from(edit[2]));
        at = edit[1];
    });
    parts.push(given.slice(at));
    return Buffer.concat(parts).toString();
}

// Called for every piece of a reply: nothing is made here that stays until the end of the request.
function filter(r, data, flags) {
    if (mode === null && begin(r)) {
        r.sendBuffer(data, flags);
        r.done();
        return;
    }
    const length = data.length;
    if (length) {
        events += 1;
        keep(data, length);
    } else if (events && !flags.last) {
        cut = true;   // nginx flushes, and then closes: the backend broke off
    }
    if (mode === 'hide') {
        data = visible(data, flags.last || cut);
    }
    if (data.length || !length) {
        size += data.length;
        if (stream && (cut || flags.last)) {
            data = ended(data);
        }
        r.sendBuffer(data, flags);
    }
}

// Decides what is done about this reply; true if nothing is.
function begin(r) {
    mode = r.variables.headrace_watch || '';
    const found = r.headersOut['Content-Type'] || '';
    stream = r.status === 200 && found.toLowerCase().startsWith('text/event-stream');
    if (mode === 'hide' && !stream) {
        mode = 'usage';
    }
    if (mode === 'end') {   // HTTP itself says whether a reply is whole, if the backend says how long it is
        return !stream || Boolean(r.variables.upstream_http_transfer_encoding);
    }
    return mode === '';
}

function keep(data, length) {
    if (tail === null) {
        tail = Buffer.alloc(ROOM);
    }
    if (length > ROOM - KEPT) {
        data.copy(tail, 0, length - KEPT);
        filled = KEPT;
        return;
    }
    if (filled + length > ROOM) {
        tail.copyWithin(0, filled - KEPT, filled);
        filled = KEPT;
    }
    data.copy(tail, filled);
    filled += length;
}

function text() {
    return tail === null ? '' : tail.slice(Math.max(0, filled - KEPT), filled).toString();
}

// The piece without the event that tells nothing but a usage the client did not ask for.
function visible(data, last) {
    if (held === null && data.length && data[data.length - 1] === 10 && data.indexOf(USAGE) < 0) {
        return data;
    }
    const all = held === null ? data : Buffer.concat([held, data]), shown = [];
    let start = 0;
    for (let end = after(all, 0); end > 0; end = after(all, start)) {
        const event = all.slice(start, end);
        if (event.indexOf(USAGE) < 0 || !NO_CHOICES.test(event.toString())) {
            shown.push(event);
        }
        start = end;
    }
    const rest = all.slice(start);
    if (last && rest.length) {
        shown.push(rest);
    }
    held = last || !rest.length ? null : Buffer.from(rest);
    return shown.length ? Buffer.concat(shown) : Buffer.alloc(0);
}

// Where the event that begins at `start` ends; 0 if it does not.
function after(data, start) {
    const plain = data.indexOf('\n\n', start), wide = data.indexOf('\r\n\r\n', start);
    if (plain < 0 && wide < 0) {
        return 0;
    }
    return wide >= 0 && (plain < 0 || wide < plain) ? wide + 4 : plain + 2;
}

// The last piece of a stream; if the stream is not whole, with an event that says so.
function ended(data) {
    const said = text();
    if (!cut && !ERROR_EVENT.test(said) && (/\[DONE\]\s*$/.test(said) || FINISHED.test(said))) {
        return data;
    }
    const event = (EVENT_END.test(said) ? '' : '\n\n') + (cut ? BROKEN : UNFINISHED);
    size += event.length;
    return Buffer.concat([data, Buffer.from(event)]);
}

// For the report: what was seen, as JSON.
function watched(r) {
    return mode ? JSON.stringify({ events, size, tail: text(), cut }) : '';
}

export default { body, filter, watched };
