#!lua flags=allow-oom
-- take_quarantined: take messages out of a shard's quarantine: back into its inbox, or away.
--
-- It is put back and removed at once, so it is always in one of both. Safe to run twice: a source is numbered as those of
-- posts, and its last letters are kept.
-- What is put back is what was there, with its identity; what should have one gets that of its entry. If a server loses
-- that a message was put back, it is in the quarantine again; its owner may have committed again that its run has taken
-- it, and noted the identity in `seen`: then it is only removed.
-- A run that has not begun drops what comes before its start, so that is refused unless the start is put back before it.
-- A start that has waited has its input in the run's record, which belongs into the message now.
--
-- KEYS   seen, inbox, kept, owner, poison, then for each message: run; for each message: asleep
-- ARGV   source, number, now, action (redrive or drop), then for each message: entry
-- RETURNS a string with a letter for each message: a (put back, or dropped), d (its run has taken it: removed);
--         and of those that stay: g (it isn't in the quarantine), k (it has no kind that a run takes), m (no such run, or
--         a later one has its id), e (its run has ended, or of a start: has begun), b (its run has not begun)
--         / WRONGTYPE key
-- @include shared/asleep
-- @include shared/clock
-- @include shared/holds
-- @include shared/inbox
local seen, owner, poison = KEYS[1], KEYS[4], KEYS[5]
local source, number, action = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local FIXED_KEYS, FIXED_ARGS = 5, 4
local LATER = 60000 -- ms by which a run is surely younger than what was put aside before: two clocks are compared
local IS_SENT = {signal = true, ask = true, cancel = true, terminate = true} -- kinds that a run would take twice
local IS_REPORT = {child = true, outcome = true, returned = true}

if not holds(seen, 'hash') then return redis.error_reply('WRONGTYPE ' .. seen) end
if not holds(poison, 'stream') then return redis.error_reply('WRONGTYPE ' .. poison) end
local inbox = open_inbox(KEYS[2], KEYS[3])
if inbox.err then return inbox end
local count = #ARGV - FIXED_ARGS
for i = FIXED_KEYS + 1, #KEYS do
  local wanted = i > FIXED_KEYS + count and 'hash' or 'list'
  if not holds(KEYS[i], wanted) then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local last_number, last_letters = string.match(redis.call('HGET', seen, source) or '', '^(%d+) %d+ (%a*)$')
if last_number and tonumber(last_number) >= number then return last_letters end

local function letter_for(message, entry, run, bucket, begun)
  if message.kind ~= 'start' and not IS_SENT[message.kind] and not IS_REPORT[message.kind] then return 'k' end
  if message.from and string.match(redis.call('HGET', seen, message.from) or '', '^0%-0 ') then return 'd' end
  local header = redis.call('LINDEX', run, 0) or header_of_sleeper(bucket, message.run)
  local status, version, created = string.match(header, '^(%a+) (%d+) %S+ (%d+)')
  if not status or tonumber(created) > tonumber(string.match(entry, '^%d+')) + LATER then return 'm' end
  if message.kind == 'start' then
    return header == message.header and status == 'pending' and redis.call('LLEN', run) == 2 and 'a' or 'e'
  end
  if version == '0' then return begun[run] and 'a' or 'b' end
  local open = status == 'pending' or status == 'running' or status == 'stuck' or status == 'paused'
  return open and 'a' or 'e' -- pending: it begins later
end

local letters, messages, known, begun = {}, {}, {}, {}
for i = 1, count do
  local entry, run, bucket = ARGV[FIXED_ARGS + i], KEYS[FIXED_KEYS + i], KEYS[FIXED_KEYS + count + i]
  local found = not known[entry] and redis.call('XRANGE', poison, entry, entry)[1]
  if found then
    local message = {}
    for n = 1, #found[2], 2 do
      if found[2][n + 1] ~= '' then message[found[2][n]] = found[2][n + 1] end
    end
    if IS_SENT[message.kind] and not message.from then message.from = 'm:quarantine.' .. entry end
    letters[i] = action == 'drop' and 'a' or letter_for(message, entry, run, bucket, begun)
    if message.kind == 'start' and letters[i] == 'a' then begun[run] = true end
    messages[i], known[entry] = message, true
  else
    letters[i] = 'g'
  end
end
local clock = shard_clock(ARGV[3], redis.call('HGET', owner, 'clock'))

for i, letter in ipairs(letters) do
  local entry, run, message = ARGV[FIXED_ARGS + i], KEYS[FIXED_KEYS + i], messages[i]
  if letter == 'a' and action ~= 'drop' then
    local fields = {'kind', message.kind, 'run', message.run, 'body', message.body or ''}
    if message.kind == 'start' then
      fields[7], fields[8] = 'header', message.header
      redis.call('LSET', run, 1, '')
    elseif message.from then
      fields[7], fields[8] = 'from', message.from
    end
    put_message(inbox, unpack(fields))
  end
  if letter == 'a' or letter == 'd' then redis.call('XDEL', poison, entry) end
end
local joined = table.concat(letters)
redis.call('HSET', seen, source, string.format('%.0f %.0f %s', number, clock, joined))
return joined
