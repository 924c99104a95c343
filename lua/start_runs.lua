#!lua
-- start_runs: create runs that don't exist yet, each with its first message; a run that exists stays as it is.
--
-- A run's start joins the inbox, or waits for its turn (`shared/open_run.lua`).
-- Safe to run twice: the second time every run exists; one that the same start has created is known by its identity,
-- the last field of what it asks for besides its input (behind its trace). Refused as a whole when memory is short (admission), because the
-- script's line has no allow-oom.
--
-- KEYS   owner, inbox, kept, waiting, turns, then for each run: run, index, tenant_index
-- ARGV   now (ms; with = before it: when these runs began, which the server has lost), then for each run: workflow, tenant, trace, body
-- RETURNS for each run: header (of the run that has the id, with a plus before it if this call created it, = if an earlier one of
--         this start did)
--         / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
-- @include shared/inbox
-- @include shared/open_run
-- @include shared/run_id
local owner, waiting, turns = KEYS[1], KEYS[4], KEYS[5]
local FIXED_KEYS = 5
local count = (#KEYS - FIXED_KEYS) / 3

local headers = {}
local inbox = open_inbox(KEYS[2], KEYS[3])
if inbox.err then return inbox end
local door = look_at_door(inbox, waiting, turns)
if door.err then return door end
for i = 1, count do
  local at = FIXED_KEYS + 3 * i - 2 -- of the run's first key
  local run, index, tenant_index = KEYS[at], KEYS[at + 1], KEYS[at + 2]
  headers[i] = redis.pcall('LINDEX', run, 0) or ''
  if type(headers[i]) == 'table' then return redis.error_reply('WRONGTYPE ' .. run) end
  if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
  if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
end
local exactly = string.match(ARGV[1], '^=(%d+)$') -- of a run that the server has lost: it is the same one again
local clock = tonumber(exactly) or shard_clock(ARGV[1], redis.call('HGET', owner, 'clock'))

local created = {}
for i = 1, count do
  local key = FIXED_KEYS + 3 * i - 2
  local run = KEYS[key]
  local at = 4 * i - 2 -- of the run's first argument
  if headers[i] ~= '' then
    local identity = string.match(ARGV[at + 2], ' [^ ]*(i%x+)$')
    if identity and string.sub(headers[i], -#identity) == identity then headers[i] = '=' .. headers[i] end
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
