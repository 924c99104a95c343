#!lua flags=allow-oom
-- due_runs: return which runs of a shard are due now, and when the next one is.
--
-- Nothing is removed from the agenda here: the commit of the transition that the due time causes does that, so that a
-- crash between the two loses nothing. Runs with steps in flight (score -1) are in the owner's memory and are not due.
-- Safe to run twice: only the shard's clock moves.
--
-- KEYS   owner, agenda
-- ARGV   token, now, limit
-- RETURNS OK clock next id… (next: ms of the earliest run that isn't due yet, or '') / FENCED token
-- @include shared/clock
local owner, agenda = KEYS[1], KEYS[2]

local stored = redis.call('HMGET', owner, 'token', 'clock')
if stored[1] ~= ARGV[1] then return {'FENCED', stored[1] or ''} end
local clock = shard_clock(ARGV[2], stored[2])
local now = string.format('%.0f', clock)
local due = redis.call('ZRANGEBYSCORE', agenda, 0, now, 'LIMIT', 0, ARGV[3])
local upcoming = redis.call('ZRANGEBYSCORE', agenda, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)

redis.call('HSET', owner, 'clock', now)
local reply = {'OK', now, upcoming[2] or ''}
for i, id in ipairs(due) do reply[i + 3] = id end
return reply
