#!lua
-- post_once: put a signal or ask into the inbox unless that was done before, behind the start of its run if none is open.
--
-- `known` says which run has the message: a string that expires after `remember`, named after the caller's idempotency
-- id. The message carries its identity (`from`), under which the owner notes it in `seen` if this server loses that its
-- run has taken it (`shared/post.lua`), so a call that comes again after a failover finds it there.
-- `workflow`: that of the run that begins if none of its id is open, '' if none shall begin. `expected`: the header of
-- the ended run that it takes the place of (as `replace_run`); the listings are those that it is in. A start that has to
-- wait is begun by what comes for its run, so the message doesn't overtake it.
-- `created`: that of the run that a message without start is for, '' for whichever has the id.
-- Safe to run twice: the second time the message is known. Refused when memory is short.
--
-- KEYS   owner, inbox, kept, waiting, turns, seen, known, run, index, tenant_index, published, chunks,
--        then for each listing: listing; for each run that may sleep: asleep
-- ARGV   now (ms; with = before it: when the run began, which the server has lost), identity, remember (ms), created,
--        expected, workflow, tenant, trace, body, kind, message
-- RETURNS letter created header (letter: + the run was created by this, a it was there, d the message came before, to the
--         run that was created then; nothing was done: e the run has ended, m there is none, c it is of another workflow)
--         / ASLEEP (some runs of the shard sleep: call again with the bucket) / WRONGTYPE key
-- @include shared/asleep
-- @include shared/clock
-- @include shared/holds
-- @include shared/inbox
-- @include shared/open_run
-- @include shared/run_id
-- @include shared/make_way
local owner, waiting, turns, seen, known, run, index, tenant_index, published, chunks =
  KEYS[1], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local FIXED_KEYS = 12
local bucket, last_listing = bucket_behind(owner)
local identity, remember, wanted, expected = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local workflow, tenant, trace, body, kind, message = ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]

if not holds(owner, 'hash') then return redis.error_reply('WRONGTYPE ' .. owner) end
local inbox = open_inbox(KEYS[2], KEYS[3])
if inbox.err then return inbox end
local door = look_at_door(inbox, waiting, turns)
if door.err then return door end
if not holds(seen, 'hash') then return redis.error_reply('WRONGTYPE ' .. seen) end
local before = redis.pcall('GET', known)
if type(before) == 'table' then return redis.error_reply('WRONGTYPE ' .. known) end
local header = redis.pcall('LINDEX', run, 0) or ''
if type(header) == 'table' then return redis.error_reply('WRONGTYPE ' .. run) end
if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
if not holds(published, 'hash') then return redis.error_reply('WRONGTYPE ' .. published) end
if not holds(chunks, 'hash') then return redis.error_reply('WRONGTYPE ' .. chunks) end
for i = FIXED_KEYS + 1, last_listing do
  if not holds(KEYS[i], 'zset') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end
local stored = header == '' and not before and redis.call('HMGET', owner, 'clock', 'asleep')
if stored and some_sleep(stored[2]) then
  if not bucket then return 'ASLEEP' end
  if not holds(bucket, 'hash') then return redis.error_reply('WRONGTYPE ' .. bucket) end
  header = header_of_sleeper(bucket, string.sub(run, run_id_begins(owner)))
end

local created, _, of = string.match(header, '^%a+ %d+ %S+ (%d+) (%d+) (%S+)')
created = created or ''
if before then return {'d', before, header} end
if redis.call('HGET', seen, identity) then
  redis.call('SET', known, created, 'PX', remember)
  return {'d', created, header}
end
local is_open = header ~= '' and not has_ended(header)
if workflow == '' then
  if header == '' or (wanted ~= '' and wanted ~= created) then return {'m', created, header} end
  if not is_open then return {'e', created, header} end
else
  if header ~= '' and of ~= workflow and of ~= '-' then return {'c', created, header} end
  if header ~= '' and not is_open and header ~= expected then return {'e', created, header} end
end

local letter = 'a'
if not is_open then
  if header ~= '' then make_way(owner, header, run, published, chunks, FIXED_KEYS + 1, last_listing) end
  local exactly = string.match(ARGV[1], '^=(%d+)$') -- of a run that the server has lost: it is the same one again
  local clock = tonumber(exactly) or shard_clock(ARGV[1], stored and stored[1] or redis.call('HGET', owner, 'clock'))
  local id = string.sub(run, run_id_begins(owner))
  header = open_run(door, run, index, tenant_index, clock, id, workflow, tenant, '', trace, body)
  letter, created = '+', string.format('%.0f', clock)
end
put_message(inbox, 'kind', kind, 'run', string.sub(run, run_id_begins(owner)), 'body', message, 'from', identity)
redis.call('SET', known, created, 'PX', remember)
return {letter, created, header}
