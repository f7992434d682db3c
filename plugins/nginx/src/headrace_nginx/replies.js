// Edits requests and watches replies that nginx delivers without the core.
//
// njs keeps what a call is given and makes until the request ends: each piece, and some 600 bytes besides. So `filter`
// makes little, and stops watching a reply once that would be too much.

const KEPT = 4096, USAGE_BYTES = 1024, HELD = 16384;
const SMALL = 32, NEWEST = 31;
const CALL = 600, MOST = 8 * 1024 * 1024;

let awaited = 0;      // the length of a reply that is no stream, if the backend said it
let mode = null;      // what the core wants of this reply: usage, hide, end; empty: nothing
let plain = false;    // whether pieces pass as they are
let stream = false;   // whether it is an event stream
let events = 0, size = 0, first = 0, made = 0;
let answers = 0;      // how many a stream has; 0 if the core did not say so
let cut = false, flushed = false, unfinished = false, whole = true, finished = false;
let failed = false;   // whether the backend told of an error
let over = false;     // whether the end has been sent: what follows goes nowhere
let early = '';       // the usage in the first piece of a reply that is no stream: some say it first
let held = null;      // the beginning of an event, until its end has come
let loose = false;    // whether an event is passing that is too long for that

const pieces = [];    // the newest ones, in a ring; small ones lie together
let newest = 0;

// The client's body with what the core changes in it.
function body(r) {
    const given = r.requestBuffer, parts = [];
    let at = 0;
    JSON.parse(r.variables.headrace_edits).forEach(edit => {
        parts.push(given.slice(at, edit[0]), Buffer.from(edit[2]));
        at = edit[1];
    });
    if (given.length < at) {
        throw new Error('the body is not here');
    }
    parts.push(given.slice(at));
    const all = Buffer.concat(parts);
    return String.bytesFrom ? String.bytesFrom(all.toString('hex'), 'hex') : all;
}

// Called for the head of a reply. What nginx would take for an old or unfinished answer ends here.
function head(r) {
    if (r.status < 200 || r.status > 599 || r.httpVersion === '0.9') {
        r.variables.headrace_whole = '{"events":0,"size":0,"cut":true}';
        throw new Error('the backend does not speak HTTP/1.1');
    }
    const found = r.headersOut['Content-Type'] || '';
    if (r.variables.headrace_watch && r.status === 200 && found.toLowerCase().startsWith('text/event-stream')) {
        delete r.headersOut['Content-Length'];   // what is left out or added changes it
    }
    if (r.variables.headrace_failed && r.status !== 401) {   // a failed backend's, of which nginx makes a copy
        delete r.headersOut['WWW-Authenticate'];
    }
}

// Called for every piece of a reply. The first lines are all that most of them cost.
function filter(r, data, flags) {
    const length = data.length;
    if (plain && length >= SMALL && events * CALL + size + made < MOST && !flags.last &&
        !(stream && isSpecial(data, length))) {
        events += 1;
        size += length;
        newest = newest + 1 & NEWEST;
        pieces[newest] = data;
        r.sendBuffer(data);
        return;
    }
    if (over) {
        return;
    }
    if (mode === null ? begin(r) : events * CALL + size + made > MOST) {
        r.sendBuffer(held === null ? data : Buffer.concat([held, data]), flags);
        whole = mode === '';
        r.done();
        return;
    }
    if (awaited === length && length) {
        seenWhole(r, data, length);
        r.sendBuffer(data, flags);
        r.done();
        return;
    }
    look(r, data, length, flags);
}

function look(r, data, length, flags) {
    if (length) {
        first = first || Date.now();
        events += 1;
        keep(data, length);
        if (!stream && events === 1) {
            early = usage(data);
        }
    } else if (!flags.last) {   // nginx flushes a head that comes alone, and again when the backend broke off
        cut = events > 0 || flushed;
        flushed = true;
    } else if (!stream && unframed(r) && !/[}\]]\s*$/.test(text())) {
        cut = true;
        throw new Error('the backend broke off');   // the client's connection breaks, too
    }
    if (stream && length) {
        data = visible(data);
    }
    if (data.length || !length || flags.last || failed) {
        if (stream && (cut || flags.last || failed)) {
            data = ended(data);
            r.sendBuffer(data, { last: true });
        } else {
            r.sendBuffer(data);
        }
        size += data.length;
    }
    plain = !over && mode !== 'hide' && events > 0 && held === null && !loose;
}

// Decides what is done about this reply; true if nothing is.
function begin(r) {
    const told = (r.variables.headrace_watch || '').split(' ');
    mode = told[0];
    answers = Number(told[1]) || 0;
    const found = r.headersOut['Content-Type'] || '';
    stream = r.status === 200 && found.toLowerCase().startsWith('text/event-stream');
    if (mode === 'hide' && !stream) {
        mode = 'usage';
    }
    if (mode === 'usage' && !stream) {
        awaited = Number(r.variables.upstream_http_content_length) || 0;
    }
    if (mode === 'end' && r.variables.upstream_http_transfer_encoding) {
        mode = '';   // HTTP itself says whether the reply is whole, and nginx tells the core of one that is not
    }
    return mode === '';
}

// A whole reply in one piece, as most are: this one call is all.
function seenWhole(r, data, length) {
    r.variables.headrace_whole = `{"events":1,"size":${length},"first":${Date.now()},"usage":"${usage(data)}"}`;
}

// Whether nothing but the end of the connection says where a JSON reply ends.
function unframed(r) {
    const found = r.headersOut['Content-Type'] || '';
    return found.startsWith('application/json') && !r.variables.upstream_http_content_length &&
        !r.variables.upstream_http_transfer_encoding;
}

function keep(data, length) {
    const before = pieces[newest];
    if (before !== undefined && before.length < SMALL) {
        data = Buffer.concat([before, data]);
    } else {
        newest = newest + 1 & NEWEST;
    }
    pieces[newest] = data;
}

// The end of the reply, as far as it is kept.
function tail() {
    const all = Buffer.concat(pieces.slice(newest + 1).concat(pieces.slice(0, newest + 1)).filter(each => each));
    return all.slice(Math.max(0, all.length - KEPT));
}

function text() {
    return tail().toString();
}

// Whether a piece must be taken apart: it does not end with an event, or may have one that is not shown.
function isSpecial(data, length) {
    return data[length - 1] !== 10 || data[length - 2] !== 10 || data.indexOf('"error"') >= 0 ||
        data.indexOf('"abort"') >= 0 || mode === 'hide' && data.indexOf('"usage"') >= 0;
}

// What is shown of a stream: whole events, up to one that tells of an error, and none that tells nothing but a usage
// the client did not ask for. If the stream broke after half an event, nothing could be said any more.
function visible(data) {
    if (held === null && !isSpecial(data, data.length)) {
        loose = false;
        return data;
    }
    const all = held === null ? data : Buffer.concat([held, data]), shown = [];
    made += all.length;
    let start = 0;
    for (let end = after(all, 0); end > 0; end = after(all, start)) {
        const event = all.slice(start, end);
        if (tellsError(event)) {
            failed = true;
            held = null;
            return Buffer.concat(shown);
        }
        if (!hidden(event)) {
            shown.push(event);
        }
        start = end;
    }
    const rest = all.slice(start);
    loose = rest.length > HELD || loose && start === 0;
    if (loose) {
        shown.push(rest);
    }
    held = rest.length && !loose ? Buffer.from(rest) : null;
    return Buffer.concat(shown);
}

function hidden(event) {
    return mode === 'hide' && event.indexOf('"usage"') >= 0 && /"choices"\s*:\s*\[\s*\]/.test(event.toString());
}

// vLLM's finish reason for an answer that its own end has cut off is `abort`.
function tellsError(event) {
    if (event.indexOf('"error"') < 0 && event.indexOf('"abort"') < 0) {
        return false;
    }
    const said = object(event);
    return said !== null && (said.error !== undefined && said.error !== null || Array.isArray(said.choices) &&
        said.choices.some(each => each !== null && each.finish_reason === 'abort'));
}

// The JSON object in an event; null if there is none that can be read.
function object(event) {
    const found = /^data:\s*(\{.*)$/m.exec(event.toString());
    try {
        return found && JSON.parse(found[1]);
    } catch (error) {
        return null;
    }
}

// Where the event that begins at `start` ends; 0 if it does not.
function after(data, start) {
    const found = ['\n\n', '\r\n\r\n', '\r\r'].map(ends => {
        const at = data.indexOf(ends, start);
        return at < 0 ? Infinity : at + ends.length;
    });
    const first = Math.min(found[0], found[1], found[2]);
    return first === Infinity ? 0 : first;
}

// The last piece of a stream; if the stream is not whole, with an event that says so.
function ended(data) {
    const all = tail(), rest = held === null ? Buffer.alloc(0) : held, shown = [data];
    const sent = all.slice(0, Math.max(0, all.length - rest.length)).toString();
    const half = cut || /^data:\s*\{/m.test(rest.toString()) && object(rest) === null;
    const said = half ? sent : all.toString(), reason = /"finish_reason"\s*:\s*"(?!abort")/.test(said);
    failed = failed || !half && tellsError(rest);
    finished = cut && answers === 1 && reason;   // what is missing is its farewell
    unfinished = failed || !finished && (cut || !reason && !/\[DONE\]\s*$/.test(said));
    if (unfinished) {
        const open = !failed && sent && !/(\n\n|\r\n\r\n|\r\r)$/.test(sent);
        shown.push(Buffer.from((open ? '\n\n' : '') + (failed ? FAILED : cut ? BROKEN : UNFINISHED)));
    } else if (!half && !hidden(rest)) {
        shown.push(rest);
    }
    cut = cut && !finished;
    over = true;
    return Buffer.concat(shown);
}

// The last usage object, in base64. The word alone may be a token, or a null.
function usage(data) {
    let at = data.length;
    for (let tries = 0; tries < 64 && at > 0; tries += 1) {
        at = data.lastIndexOf('"usage"', at - 1);
        if (at < 0) {
            return '';
        }
        let next = at + 7;
        while (data[next] === 58 || data[next] === 32) {
            next += 1;
        }
        if (data[next] === 123) {
            return data.slice(at, at + USAGE_BYTES).toString('base64');
        }
    }
    return '';
}

// For the report, as JSON: what was seen, and the last usage object in base64.
function watched(r) {
    if (!mode) {
        return '';
    }
    return `{"events":${events},"size":${size},"cut":${cut},"unfinished":${unfinished},"whole":${whole},` +
        `"finished":${finished},"why":"${failed ? 'failed' : ''}","first":${first},"usage":"${usage(tail()) || early}"}`;
}

export default { body, filter, head, watched };
