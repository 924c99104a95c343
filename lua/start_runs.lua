#!lua
-- start_runs: create runs that don't exist yet, each with its first message; a run that exists stays as it is.
--
-- Safe to run twice: the second time every run exists. Refused as a whole when memory is short (admission), because the
-- script's line has no allow-oom.
--
-- KEYS   owner, inbox, then for each run: run, index, tenant_index
-- ARGV   now, then for each run: id, workflow, tenant, body
-- RETURNS for each run: header (of the run that has the id, with a plus before it if this call created it)
--         / WRONGTYPE key
-- @include shared/clock
-- @include shared/holds
-- @include shared/open_run
local owner, inbox = KEYS[1], KEYS[2]
local count = (#KEYS - 2) / 3

local headers = {}
if not holds(inbox, 'stream') then return redis.error_reply('WRONGTYPE ' .. inbox) end
for i = 1, count do
  local run, index, tenant_index = KEYS[3 * i], KEYS[3 * i + 1], KEYS[3 * i + 2]
  if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
  if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
  if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
  headers[i] = redis.call('LINDEX', run, 0) or ''
end
local clock = shard_clock(ARGV[1], redis.call('HGET', owner, 'clock'))

local created = {}
for i = 1, count do
  local run = KEYS[3 * i]
  if headers[i] == '' then
    if created[run] then
      headers[i] = created[run]
    else
      local at = 4 * i - 2 -- of the run's first argument
      local header = open_run(run, inbox, KEYS[3 * i + 1], KEYS[3 * i + 2], clock,
        ARGV[at], ARGV[at + 1], ARGV[at + 2], '', ARGV[at + 3])
      created[run], headers[i] = header, '+' .. header
    end
  end
end
return headers
