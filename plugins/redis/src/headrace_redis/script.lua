-- One step of the ledger: settlements, then reservations, each taken whole or not at all.
--
-- Everything is read before anything is written, so that an error (a key of another type, no memory left) leaves all as
-- it was. What a key holds is read once, kept in `cells`, and written back at the end.
--
-- KEYS: the record of this client, the leases of all clients. ARGV: the client's name, and, as MessagePack,
--   {number, opens, corrections, requests}, or {number} alone, which asks what has become of a step.
--   opens:        key, count, ...                               what this client holds now, in place of what stood there
--   corrections:  letter, key, span, place, change, ...         so much more, or less, was used than was written there
--   requests:     {take, letter, key, most, span, amount, ...}  a list of them; take is 1, or 0 to look only
-- The letter is w (span: the window in seconds), s (span: its end in milliseconds since the epoch, 0 for none) or o.
--
-- The answer, as MessagePack: {microseconds, fits, used, place, newest, ..., fits, used, ...}, `fits` for each request and
-- three numbers for each of its limits. Of a window `place` is the slot that was written, or, of a request that did not
-- fit, the slot that must leave; of a sum it is the stamp of its beginning. `newest` is a window's newest slot in use.
local SLOTS, RING = 60, 61
local LEASE, RECORD = 60, 86400
local call = redis.call
local record, leases, client = KEYS[1], KEYS[2], ARGV[1]
local step = cmsgpack.unpack(ARGV[2])
local number, opens, corrections, requests = step[1], step[2], step[3], step[4]

-- A step counts once. One that was given up may still arrive: whoever asks about it shuts it out first ("fence").
local known = call('HMGET', record, 'done', 'fence', 'answer')
local done, fence = tonumber(known[1]) or 0, tonumber(known[2]) or 0
if not opens then
  call('HSET', record, 'fence', math.max(fence, number))
  call('EXPIRE', record, RECORD)
  return cmsgpack.pack({done, known[3] and cmsgpack.unpack(known[3]) or {}})
end
if number <= done or number <= fence then
  return redis.error_reply('STALE this step was given up')
end

local time = call('TIME')
local microseconds = time[1] * 1000000 + time[2]
local now = microseconds / 1000000
local cells = {}
local alive, holds

-- Windows: a hash with the newest slot, the sum of all slots, and what is in each.

local function open_window(key, seconds)
  local slot = math.floor(now * SLOTS / seconds)
  local kept = call('HMGET', key, 'newest', 'used', slot % RING)
  local newest = tonumber(kept[1])
  if not newest or math.abs(slot - newest) > SLOTS then
    return {kind = 'w', key = key, seconds = seconds, newest = slot, used = 0, slots = {}, anew = true, whole = true}
  end
  local cell = {kind = 'w', key = key, seconds = seconds, newest = newest, used = tonumber(kept[2]) or 0, slots = {}}
  if slot > newest then
    local gone = {}
    for each = newest + 1, slot do
      gone[#gone + 1] = each % RING
    end
    for at, value in ipairs(call('HMGET', key, unpack(gone))) do
      cell.used = cell.used - (tonumber(value) or 0)
      cell.slots[gone[at]] = 0
    end
    cell.newest, cell.gone = slot, gone
  elseif slot == newest then
    cell.slots[slot % RING] = tonumber(kept[3]) or 0
  end
  return cell
end

local function in_slot(cell, place)
  local at = place % RING
  if not cell.slots[at] then
    cell.slots[at] = not cell.whole and tonumber(call('HGET', cell.key, at)) or 0
  end
  return cell.slots[at]
end

local function read_all_slots(cell)
  if cell.whole then
    return
  end
  local kept = call('HGETALL', cell.key)
  for each = 1, #kept, 2 do
    local at = tonumber(kept[each])
    if at and not cell.slots[at] then
      cell.slots[at] = tonumber(kept[each + 1])
    end
  end
  cell.whole = true
end

local function add(cell, place, amount)
  cell.slots[place % RING] = in_slot(cell, place) + amount
  cell.used = cell.used + amount
  cell.touched = cell.touched or {}
  cell.touched[place % RING] = true
end

local function newest_used(cell)
  if cell.used <= 0 then
    return 0
  end
  for place = cell.newest, cell.newest - SLOTS, -1 do
    if in_slot(cell, place) > 0 then
      return place
    end
    read_all_slots(cell)
  end
  return 0
end

local function slot_that_must_leave(cell, amount, most)
  local over = cell.used - (most - amount)
  if over <= 0 or amount > most then
    return 0
  end
  read_all_slots(cell)
  for place = cell.newest - SLOTS, cell.newest do
    over = over - in_slot(cell, place)
    if over <= 0 then
      return place
    end
  end
  return cell.newest
end

local function write_window(cell)
  local fields = {'newest', cell.newest, 'used', cell.used}
  for at in pairs(cell.touched) do
    fields[#fields + 1] = at
    fields[#fields + 1] = cell.slots[at]
  end
  if cell.anew then
    call('DEL', cell.key)
  elseif cell.gone then
    call('HDEL', cell.key, unpack(cell.gone))
  end
  call('HSET', cell.key, unpack(fields))
  if cell.anew or cell.gone then
    call('PEXPIRE', cell.key, math.ceil(cell.seconds * 1000 * (RING + 1) / SLOTS) + 1000)
  end
end

-- Sums: a hash with what is used, and the stamp of its beginning, by which a settlement knows whether it still is the
-- same sum that was reserved from.

local function open_sum(key, ends)
  local kept = call('HMGET', key, 'used', 'stamp')
  local anew = not kept[1]
  return {kind = 's', key = key, ends = ends, anew = anew, used = tonumber(kept[1]) or 0,
          stamp = tonumber(kept[2]) or microseconds}
end

local function write_sum(cell)
  call('HSET', cell.key, 'used', cell.used, 'stamp', cell.stamp)
  if cell.anew and cell.ends > 0 then
    call('PEXPIREAT', cell.key, cell.ends)
  end
end

-- What is open: a hash with what each client holds. It counts as long as the client's lease lasts.

local function is_alive(name)
  if not alive then
    alive = {[client] = true}
    for _, each in ipairs(call('ZRANGEBYSCORE', leases, now, '+inf')) do
      alive[each] = true
    end
  end
  return alive[name]
end

local function open_open(key)
  local cell = {kind = 'o', key = key, used = 0, mine = 0, dead = {}}
  local kept = call('HGETALL', key)
  for each = 1, #kept, 2 do
    local count = tonumber(kept[each + 1])
    if not is_alive(kept[each]) then
      cell.dead[#cell.dead + 1] = kept[each]
    else
      cell.used = cell.used + count
      if kept[each] == client then
        cell.mine = count
      end
    end
  end
  return cell
end

local function write_open(cell)
  holds = true
  if #cell.dead > 0 then
    call('HDEL', cell.key, unpack(cell.dead))
  end
  if cell.mine > 0 then
    call('HSET', cell.key, client, cell.mine)
    call('EXPIRE', cell.key, 2 * LEASE)
  else
    call('HDEL', cell.key, client)
  end
end

-- One step.

local OPEN = {w = open_window, s = open_sum, o = open_open}
local WRITE = {w = write_window, s = write_sum, o = write_open}

local function cell_of(letter, key, span)
  local cell = cells[key]
  if not cell then
    cell = OPEN[letter](key, span)
    cells[key] = cell
  end
  return cell
end

local function take(cell, amount)
  if cell.kind == 'w' then
    add(cell, cell.newest, amount)
    return cell.newest
  end
  cell.used = cell.used + amount
  cell.touched = true
  if cell.kind == 'o' then
    cell.mine = cell.mine + amount
    return 0
  end
  return cell.stamp
end

local function correct(cell, place, change)
  if change > 0 then
    take(cell, change)
  elseif cell.kind == 's' then
    if not cell.anew and place == cell.stamp then
      cell.used, cell.touched = math.max(0, cell.used + change), true
    end
  elseif not cell.anew and place <= cell.newest and place >= cell.newest - SLOTS then
    add(cell, place, math.max(change, -in_slot(cell, place)))
  end
end

for each = 1, #opens, 2 do
  local cell = cell_of('o', opens[each], 0)
  cell.used, cell.mine, cell.touched = cell.used - cell.mine + opens[each + 1], opens[each + 1], true
end
for each = 1, #corrections, 5 do
  local cell = cell_of(corrections[each], corrections[each + 1], corrections[each + 2])
  correct(cell, corrections[each + 3], corrections[each + 4])
end

local answer = {microseconds}
for _, request in ipairs(requests) do
  local fits = true
  for each = 2, #request, 5 do
    local cell = cell_of(request[each], request[each + 1], request[each + 3])
    fits = fits and request[each + 4] <= request[each + 2] - cell.used
  end
  local takes, places = request[1] == 1 and fits, {}
  for each = 2, takes and #request or 0, 5 do
    places[each] = take(cells[request[each + 1]], request[each + 4])
  end
  answer[#answer + 1] = fits and 1 or 0
  for each = 2, #request, 5 do
    local cell, most, amount = cells[request[each + 1]], request[each + 2], request[each + 4]
    local is_window = cell.kind == 'w'
    answer[#answer + 1] = cell.used
    answer[#answer + 1] = places[each] or (is_window and not fits and slot_that_must_leave(cell, amount, most)) or 0
    answer[#answer + 1] = is_window and newest_used(cell) or 0
  end
end

local packed = cmsgpack.pack(answer)
for _, cell in pairs(cells) do
  if cell.touched then
    WRITE[cell.kind](cell)
  end
end
if holds then
  call('ZREMRANGEBYSCORE', leases, '-inf', '(' .. now)
  call('ZADD', leases, now + LEASE, client)
  call('EXPIRE', leases, 2 * LEASE)
end
call('HSET', record, 'done', number, 'answer', packed)
call('EXPIRE', record, RECORD)
return packed
