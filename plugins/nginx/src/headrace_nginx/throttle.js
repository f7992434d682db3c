// Turns the caller's credentials into hashes, so that no key stands in nginx's memory zones.
import crypto from 'crypto';

function hash(text) {
    return crypto.createHash('sha256').update(text).digest('base64url');
}

function token(r) {
    // The scheme's spelling and blanks are no part of the key: "bearer  x" is "Bearer x".
    return (r.headersIn['Authorization'] || '').replace(/^\s*Bearer\s+/i, '').trim();
}

function apiKey(r) {
    return (r.headersIn['X-API-Key'] || '').trim();
}

// The key in Authorization; a request without any key counts by its address.
function caller(r) {
    const key = token(r);
    if (key) {
        return hash(key);
    }
    return apiKey(r) ? '' : hash('address ' + r.remoteAddress);
}

// The key in X-API-Key, counted on its own: else a made-up Authorization beside it would evade the limit.
function second(r) {
    const key = apiKey(r);
    return key ? hash(key) : '';
}

export default { caller, second };
