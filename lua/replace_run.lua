#!lua
-- replace_run: create a run in place of an ended one that has its id, which goes in the same step.
--
-- What goes is its record, with its history, what it published and emitted, and its entries in the listings.
-- Only the run with this very header is replaced, and only if it has ended: an open one, or another one that has the id
-- by now, stays as it is, and its header is the answer. One that is gone meanwhile is in nobody's way. As with
-- `forget_runs`, the shard's clock is set behind creation and end of the run that goes, so that the new one was created
-- later. The log keeps what it has of it, so that the views count it.
-- `expected`: the header of the run that goes; the listings are those that it is in.
-- Safe to run twice: the second time the run has the identity of this start, the last field of what it asks for
-- besides its input (behind its trace). Refused when memory is short.
--
-- KEYS   owner, inbox, kept, waiting, turns, run, index, tenant_index, published, chunks,
--        then for each listing: listing; for each run that may sleep: asleep
-- ARGV   now (ms; with = before it: when the new run began, which the server has lost), expected, workflow, tenant, trace,
--        body
-- RETURNS header (of the run that has the id, with a plus before it if this call created it, = if an earlier one of
--         this start did) / ASLEEP (some runs of the shard sleep: call again with the bucket) / WRONGTYPE key
-- @include shared/asleep
-- @include shared/clock
-- @include shared/holds
-- @include shared/inbox
-- @include shared/open_run
-- @include shared/run_id
-- @include shared/make_way
local owner, waiting, turns, run, index, tenant_index, published, chunks =
  KEYS[1], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local FIXED_KEYS = 10
local bucket, last_listing = bucket_behind(owner)
local expected, workflow, tenant, trace, body = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
local inbox = open_inbox(KEYS[2], KEYS[3])
if inbox.err then return inbox end
local door = look_at_door(inbox, waiting, turns)
if door.err then return door end
local header = redis.pcall('LINDEX', run, 0) or ''
if type(header) == 'table' then return redis.error_reply('WRONGTYPE ' .. run) end
if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
if not holds(published, 'hash') then return redis.error_reply('WRONGTYPE ' .. published) end
if not holds(chunks, 'hash') then return redis.error_reply('WRONGTYPE ' .. chunks) end
for i = FIXED_KEYS + 1, last_listing do
  if not holds(KEYS[i], 'zset') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end

local identity = string.match(trace, ' [^ ]*(i%x+)$')
if header ~= '' then
  if identity and string.sub(header, -#identity) == identity then return '=' .. header end
  if header ~= expected or not has_ended(header) then return header end
  make_way(owner, header, run, published, chunks, FIXED_KEYS + 1, last_listing)
elseif some_sleep(redis.call('HGET', owner, 'asleep')) then
  if not bucket then return 'ASLEEP' end
  if not holds(bucket, 'hash') then return redis.error_reply('WRONGTYPE ' .. bucket) end
  local sleeper = header_of_sleeper(bucket, string.sub(run, run_id_begins(owner)))
  if sleeper ~= '' then return sleeper end
end
local exactly = string.match(ARGV[1], '^=(%d+)$') -- of a run that the server has lost: it is the same one again
local clock = tonumber(exactly) or shard_clock(ARGV[1], redis.call('HGET', owner, 'clock'))

local id = string.sub(run, run_id_begins(owner))
return '+' .. open_run(door, run, index, tenant_index, clock, id, workflow, tenant, '', trace, body)
