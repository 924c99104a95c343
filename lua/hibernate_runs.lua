#!lua flags=allow-oom
-- hibernate_runs: move open runs that only wait out of memory: their records are in storage, only their wake-ups stay.
--
-- What goes is the record, what it has published, and its entries in listings and on the agenda. What stays is a field of
-- the bucket that the run is in, with its due time and the name of its object (`shared/asleep.lua`). The agenda has one
-- entry for each bucket, of the run in it that is due first.
-- A run goes only if its header is byte for byte the one whose record was stored, it is running, and no step of it is in
-- flight. Safe to run twice: the second time the run isn't there any more.
--
-- KEYS   owner, agenda, then for each run: run, index, tenant_index, published, asleep; for each attribute: attribute_index
-- ARGV   token, runs (how many), then for each run: id, header, object; for each attribute: id
-- RETURNS OK, then for each run: moved ('1' if it was, '' if not) / FENCED token / WRONGTYPE key
-- @include shared/asleep
-- @include shared/holds
local owner, agenda = KEYS[1], KEYS[2]
local token, count = ARGV[1], tonumber(ARGV[2])
local FIXED_KEYS, RUN_KEYS, FIXED_ARGS, RUN_ARGS = 2, 5, 2, 3
local TYPES = {'list', 'zset', 'zset', 'hash', 'hash'}

local stored = redis.pcall('HGET', owner, 'token') or ''
if type(stored) == 'table' then return redis.error_reply('WRONGTYPE ' .. owner) end
if stored ~= token then return {'FENCED', stored} end
if not holds(agenda, 'zset') then return redis.error_reply('WRONGTYPE ' .. agenda) end
for i = FIXED_KEYS + 1, #KEYS do
  local wanted = i > RUN_KEYS * count + FIXED_KEYS and 'zset' or TYPES[(i - FIXED_KEYS - 1) % RUN_KEYS + 1]
  if not holds(KEYS[i], wanted) then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
end

local reply, moved, more = {'OK'}, {}, 0
for i = 1, count do
  local at, arg = FIXED_KEYS + RUN_KEYS * (i - 1), FIXED_ARGS + RUN_ARGS * (i - 1)
  local run, id, header, bucket = KEYS[at + 1], ARGV[arg + 1], ARGV[arg + 2], KEYS[at + 5]
  local due = redis.call('ZSCORE', agenda, id)
  local version, created, workflow, parent = string.match(header, '^running (%d+) %S+ (%d+) %S+ (%S+) %S+ (%S+)')
  reply[i + 1] = ''
  if version and redis.call('LINDEX', run, 0) == header and not (due and tonumber(due) < 0) then
    local words = {created, version, due or '-', ARGV[arg + 3], digest_of_parent(parent), workflow}
    local entry = table.concat(words, ' ')
    if #entry > MOST_OF_ENTRY then
      words[6] = '-'
      entry = table.concat(words, ' ')
    end
    redis.call('UNLINK', run, KEYS[at + 4]) -- the server frees a long one beside its work
    redis.call('ZREM', KEYS[at + 2], id)
    redis.call('ZREM', KEYS[at + 3], id)
    more = more + redis.call('HSET', bucket, id, entry)
    if due then
      local member = bucket_member(bucket)
      local first = redis.call('ZSCORE', agenda, member)
      redis.call('ZREM', agenda, id)
      if not first or tonumber(due) < tonumber(first) then redis.call('ZADD', agenda, due, member) end
    end
    moved[id], reply[i + 1] = true, '1'
  end
end
for i = RUN_KEYS * count + FIXED_KEYS + 1, #KEYS do
  local id = ARGV[FIXED_ARGS + RUN_ARGS * count + i - RUN_KEYS * count - FIXED_KEYS]
  if moved[id] then redis.call('ZREM', KEYS[i], id) end
end
if more > 0 then redis.call('HINCRBY', owner, 'asleep', more) end
return reply
