#!lua flags=allow-oom
-- commit: one batch of transitions of one shard, for many runs at once, all or nothing.
--
-- The heart. First every check: the owner's token, the commit's id, the types of all keys that will be written, and each
-- run's header, byte for byte (it holds version and last commit id). Then only writes that can't fail: records, log,
-- agenda, listings, outbox, quarantine, puts; the inbox messages that were reduced are acknowledged and deleted.
-- Safe to run twice: a commit id that the shard has as its last one answers DUP with the same facts.
-- Reducers' histories (state not empty) keep their newest transitions only: their state is their snapshot. A state with
-- a dash before it (no snapshot begins so) makes the record anew: header, the rest of the state, this transition.
-- A put sets a field of a hash, or without a field a string that nobody needs after 15 minutes.
--
-- KEYS   owner, inbox, log, agenda, outbox, poison, then index (a key for each listing that changes), then: put, then: run
-- ARGV   token, commit, now, group, channel, news, indexes, acks, plans, moves, sends, sent, poisons, puts, then
--        for each run: id, expected, header, state, transition; for each ack: inbox id;
--        for each plan: id, score ('' takes it off the agenda); for each move: id, from, to, score (positions among the
--        index keys, 0 for none); for each send: number, target, kind, id, body; for each sent: outbox number;
--        for each poison: inbox id, id, reason, event, body; for each put: field, value
-- RETURNS OK|DUP clock entry (of the log, '' when there was nothing to log) / CONFLICT id… / FENCED token / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
local owner, inbox, log, agenda, outbox, poison = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, commit, group, channel, news = ARGV[1], ARGV[2], ARGV[4], ARGV[5], ARGV[6]
local indexes, acks, plans = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local moves, sends, sent, poisons = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local before_puts, before_runs = 6 + indexes, 6 + indexes + tonumber(ARGV[14]) -- positions in KEYS
local runs = #KEYS - before_runs
local HISTORY_OF_REDUCERS, ANSWER_SECONDS, FIRST = 200, 900, 14

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
local stored = redis.call('HMGET', owner, 'token', 'commit', 'clock', 'log', 'committed')
if stored[1] ~= token then return {'FENCED', stored[1] or ''} end
if stored[2] == commit then return {'DUP', stored[5], stored[4]} end
if acks + poisons > 0 and not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
if runs + poisons > 0 and not holds(log, 'stream') then return redis.error_reply('WRONGTYPE ' .. log) end
if plans > 0 and not holds(agenda, 'zset') then return redis.error_reply('WRONGTYPE ' .. agenda) end
if sends + sent > 0 and not holds(outbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. outbox) end
if poisons > 0 and not holds(poison, 'stream') then return redis.error_reply('WRONGTYPE ' .. poison) end
for i = 7, before_runs do
  local put = #ARGV - 2 * (before_runs - i) - 1 -- where its field is, if it is one
  local wanted = i <= before_puts and 'zset' or ARGV[put] == '' and 'string' or 'hash'
  if not holds(KEYS[i], wanted) then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local conflict = {'CONFLICT'}
local at = FIRST
for i = before_runs + 1, #KEYS do
  if redis.pcall('LINDEX', KEYS[i], 0) ~= ARGV[at + 2] then conflict[#conflict + 1] = ARGV[at + 1] end
  at = at + 5
end
if #conflict > 1 then return conflict end
local clock = string.format('%.0f', shard_clock(ARGV[3], stored[3]))

-- The outbox first: its numbers are the caller's, and were one refused, nothing else would have been written.
at = FIRST + 5 * runs + acks + 2 * plans + 4 * moves
for _ = 1, sends do
  redis.call('XADD', outbox, ARGV[at + 1],
    'target', ARGV[at + 2], 'kind', ARGV[at + 3], 'run', ARGV[at + 4], 'body', ARGV[at + 5])
  at = at + 5
end
for _ = 1, sent do
  redis.call('XDEL', outbox, ARGV[at + 1])
  at = at + 1
end

local entry = {}
for _ = 1, poisons do
  redis.call('XADD', poison, 'MAXLEN', '~', 1000, '*', 'run', ARGV[at + 2], 'reason', ARGV[at + 3], 'body', ARGV[at + 5])
  redis.call('XACK', inbox, group, ARGV[at + 1])
  redis.call('XDEL', inbox, ARGV[at + 1])
  entry[#entry + 1], entry[#entry + 2] = '-' .. ARGV[at + 1], ARGV[at + 4] -- no run's id begins with a dash
  at = at + 5
end

at = FIRST
for i = before_runs + 1, #KEYS do
  local run, state, transition = KEYS[i], ARGV[at + 4], ARGV[at + 5]
  redis.call('LSET', run, 0, ARGV[at + 3])
  redis.call('RPUSH', run, transition)
  if string.byte(state) == 45 then
    redis.call('LTRIM', run, -1, -1)
    redis.call('LPUSH', run, string.sub(state, 2), ARGV[at + 3])
  elseif state ~= '' then
    redis.call('LSET', run, 1, state)
    if redis.call('LLEN', run) > 2 + 2 * HISTORY_OF_REDUCERS then
      redis.call('LTRIM', run, -HISTORY_OF_REDUCERS, -1)
      redis.call('LPUSH', run, state, ARGV[at + 3])
    end
  end
  entry[#entry + 1], entry[#entry + 2] = ARGV[at + 1], transition
  at = at + 5
end
for first = 1, acks, 1000 do -- many at once: a hot run folds thousands of messages into one transition
  local last = math.min(first + 999, acks)
  redis.call('XACK', inbox, group, unpack(ARGV, at + first, at + last))
  redis.call('XDEL', inbox, unpack(ARGV, at + first, at + last))
end
at = at + acks
for _ = 1, plans do
  if ARGV[at + 2] == '' then redis.call('ZREM', agenda, ARGV[at + 1])
  else redis.call('ZADD', agenda, ARGV[at + 2], ARGV[at + 1]) end
  at = at + 2
end
for _ = 1, moves do
  local from, to = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if from > 0 then redis.call('ZREM', KEYS[6 + from], ARGV[at + 1]) end
  if to > 0 then redis.call('ZADD', KEYS[6 + to], ARGV[at + 4], ARGV[at + 1]) end
  at = at + 4
end
for i = before_puts + 1, before_runs do
  local put = #ARGV - 2 * (before_runs - i) - 1
  if ARGV[put] == '' then redis.call('SET', KEYS[i], ARGV[put + 1], 'EX', ANSWER_SECONDS)
  else redis.call('HSET', KEYS[i], ARGV[put], ARGV[put + 1]) end
end

local last = ''
for first = 1, #entry, 4000 do
  last = redis.call('XADD', log, '*', unpack(entry, first, math.min(first + 3999, #entry)))
end
redis.call('HSET', owner, 'commit', commit, 'clock', clock, 'committed', clock, 'log', last)
if news ~= '' then redis.pcall('SPUBLISH', channel, news) end
return {'OK', clock, last}
