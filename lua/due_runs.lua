#!lua flags=allow-oom
-- due_runs: return which runs of a shard are due now, and when the next one is.
--
-- Nothing is removed from the agenda here: the commit of the transition that the due time causes does that, so that a
-- crash between the two loses nothing. Runs with steps in flight (score -1) are in the owner's memory and are not due.
-- `now` is the owner's time, and nothing else decides what is due: neither the server's clock nor one that a former
-- owner has stored, so that what an owner has waited for is due, and it asks once.
-- Reads only.
--
-- KEYS   owner, agenda
-- ARGV   token, now, limit
-- RETURNS OK next id… (next: ms of the earliest run that isn't due yet, or '') / FENCED token
local owner, agenda = KEYS[1], KEYS[2]
local token, now = ARGV[1], ARGV[2]

local stored = redis.call('HGET', owner, 'token') or ''
if stored ~= token then return {'FENCED', stored} end
local due = redis.call('ZRANGEBYSCORE', agenda, 0, now, 'LIMIT', 0, ARGV[3])
local upcoming = redis.call('ZRANGEBYSCORE', agenda, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)

local reply = {'OK', upcoming[2] or ''}
for i, id in ipairs(due) do reply[i + 2] = id end
return reply
