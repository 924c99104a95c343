#!lua
-- start_runs: create runs that don't exist yet, each with its first message; a run that exists stays as it is.
--
-- A run's start joins the inbox, or waits for its turn (`shared/open_run.lua`).
-- Safe to run twice: the second time every run exists; one that the same start has created is known by its identity,
-- the last field of what it asks for besides its input (behind its trace). Refused as a whole when memory is short (admission), because the
-- script's line has no allow-oom.
--
-- KEYS   owner, inbox, kept, waiting, turns, then for each run: run, index, tenant_index; for each run that may sleep: asleep
-- ARGV   now (ms; with = before it: when these runs began, which the server has lost), then for each run: workflow, tenant, trace, body
-- RETURNS for each run: header (of the run that has the id, with a plus before it if this call created it, = if an earlier one of
--         this start did)
--         / ASLEEP (some runs of the shard sleep: call again with all buckets) / WRONGTYPE key
-- @include shared/asleep
-- @include shared/clock
-- @include shared/holds
-- @include shared/inbox
-- @include shared/open_run
-- @include shared/run_id
local owner, waiting, turns = KEYS[1], KEYS[4], KEYS[5]
local FIXED_KEYS = 5
local count = (#ARGV - 1) / 4
local has_buckets = #KEYS > FIXED_KEYS + 3 * count

local headers, some_missing = {}, false
local inbox = open_inbox(KEYS[2], KEYS[3])
if inbox.err then return inbox end
local door = look_at_door(inbox, waiting, turns)
if door.err then return door end
for i = 1, count do
  local at = FIXED_KEYS + 3 * i - 2 -- of the run's first key
  local run, index, tenant_index = KEYS[at], KEYS[at + 1], KEYS[at + 2]
  headers[i] = redis.pcall('LINDEX', run, 0) or ''
  if type(headers[i]) == 'table' then return redis.error_reply('WRONGTYPE ' .. run) end
  some_missing = some_missing or headers[i] == ''
  if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
  if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
end
local exactly = string.match(ARGV[1], '^=(%d+)$') -- of a run that the server has lost: it is the same one again
local stored = redis.call('HMGET', owner, 'clock', 'asleep')
local clock = tonumber(exactly) or shard_clock(ARGV[1], stored[1])
if some_missing and some_sleep(stored[2]) then
  if not has_buckets then return 'ASLEEP' end
  for i = 1, count do
    local bucket = KEYS[FIXED_KEYS + 3 * count + i]
    if not holds(bucket, 'hash') then return redis.error_reply('WRONGTYPE ' .. bucket) end
    if headers[i] == '' then
      local header = header_of_sleeper(bucket, string.sub(KEYS[FIXED_KEYS + 3 * i - 2], run_id_begins(owner)))
      local is_same = exactly and string.match(header, '^%a+ %d+ %a+ (%d+)') == exactly
      headers[i] = is_same and '=' .. header or header
    end
  end
end

local created = {}
for i = 1, count do
  local key = FIXED_KEYS + 3 * i - 2
  local run = KEYS[key]
  local at = 4 * i - 2 -- of the run's first argument
  if headers[i] ~= '' then
    local identity = string.match(ARGV[at + 2], ' [^ ]*(i%x+)$')
    if string.byte(headers[i]) ~= 61 and identity and string.sub(headers[i], -#identity) == identity then headers[i] = '=' .. headers[i] end
  else
    if created[run] then
      headers[i] = created[run]
    else
      local header = open_run(door, run, KEYS[key + 1], KEYS[key + 2], clock,
        string.sub(run, run_id_begins(owner)), ARGV[at], ARGV[at + 1], '', ARGV[at + 2], ARGV[at + 3])
      created[run], headers[i] = header, '+' .. header
    end
  end
end
return headers
