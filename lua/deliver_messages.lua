#!lua flags=allow-oom
-- deliver_messages: accept messages from another shard's outbox: child starts and outcomes, signals, cancel requests.
--
-- The last accepted numbers of each source are kept, so redelivery is harmless and memory is O(shards). A source that a
-- failover has set back decides again what it has sent, and sends it under another number. A start finds its run, an
-- outcome is dropped by a parent that has it; signals and cancels have an identity, which is kept until the source
-- can't lose the decision any more (`daemon/retention.py` deletes it). The message carries it (`from`): if this shard
-- loses it after its run has taken it, the owner notes it here when it commits that again.
-- What a shard forgets of its messages to itself, it forgets on both sides: their identities, with a dash before them,
-- aren't kept.
-- `after`: the number of the message before, if the source has had a reply that it was accepted. A failover may have
-- lost it here: GAP, and nothing is accepted, because what is behind a gap would hide what comes again.
-- A start whose id belongs to a run of another parent becomes a `taken` message: the owner reports it to the parent.
-- `parent` is the link of a start's parent, with its incarnation (streamflow/model/record.py). A signal or cancel that has
-- one is for the child of that link only, and dropped if that doesn't exist.
--
-- KEYS   seen, inbox, kept, owner, waiting, turns, then for each message: run, index, tenant_index (used by starts);
--        for each run that may sleep: asleep
-- ARGV   source, now, after, then for each message: number (behind a space the field of its identity, if any), kind,
--        workflow, tenant, parent, trace, body
-- RETURNS the highest number that was accepted / GAP
--         / ASLEEP (some runs of the shard sleep: call again with all buckets) / WRONGTYPE key / BADNUMBER number
-- @include shared/asleep
-- @include shared/clock
-- @include shared/holds
-- @include shared/inbox
-- @include shared/number
-- @include shared/open_run
-- @include shared/run_id
local seen, owner, waiting, turns = KEYS[1], KEYS[4], KEYS[5], KEYS[6]
local FIXED_KEYS = 6
local source = ARGV[1]
local count = (#ARGV - 3) / 7
local first_bucket = FIXED_KEYS + 3 * count + 1
local PARENT = '^' .. string.rep('%S+ ', 7) .. '(%S+)' -- the eighth word of a header

if not holds(seen, 'hash') then return redis.error_reply('WRONGTYPE ' .. seen) end
local inbox = open_inbox(KEYS[2], KEYS[3])
if inbox.err then return inbox end
local door = look_at_door(inbox, waiting, turns)
if door.err then return door end
local wanted = {source, source .. '/before'} -- fields of `seen`
local texts, epochs, counts, identities = {}, {}, {}, {} -- of the messages
if ARGV[3] ~= '' and not parse_number(ARGV[3]) then return redis.error_reply('BADNUMBER ' .. ARGV[3]) end
for i = 1, count do
  local key = FIXED_KEYS + 3 * i - 2 -- of the message's first key
  local run, index, tenant_index = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  if not holds(run, 'list') then return redis.error_reply('WRONGTYPE ' .. run) end
  if not holds(index, 'zset') then return redis.error_reply('WRONGTYPE ' .. index) end
  if not holds(tenant_index, 'zset') then return redis.error_reply('WRONGTYPE ' .. tenant_index) end
  local text = ARGV[7 * i - 3]
  local epoch, number = parse_number(text)
  if not epoch then
    text, identities[i] = string.match(text, '^(%S+) (%S+)$')
    epoch, number = parse_number(text or '')
    if not epoch then return redis.error_reply('BADNUMBER ' .. ARGV[7 * i - 3]) end
    wanted[#wanted + 1] = string.match(identities[i], '^%-?(.*)$')
  end
  texts[i], epochs[i], counts[i] = text, epoch, number
end
local known = redis.call('HMGET', seen, unpack(wanted))
local numbers = open_numbers(source, known[1], known[2])
if ARGV[3] ~= '' and not has_number(numbers, parse_number(ARGV[3])) then return 'GAP' end
local has = {} -- by field
for i = 3, #wanted do has[wanted[i]] = known[i] end
local fields = {} -- new ones for `seen`
local accepted = ' ' .. ARGV[2] .. ' ' .. source -- behind the number in that of an identity
local stored = redis.call('HMGET', owner, 'clock', 'asleep')
local clock, may_sleep = shard_clock(ARGV[2], stored[1]), some_sleep(stored[2])
if may_sleep then
  for i = first_bucket, #KEYS do
    if not holds(KEYS[i], 'hash') then return redis.error_reply('WRONGTYPE ' .. KEYS[i]) end
  end
  for i = 1, count do
    local needs_run = ARGV[7 * i - 2] == 'start' or ARGV[7 * i + 1] ~= ''
    if needs_run and not KEYS[first_bucket] and redis.call('EXISTS', KEYS[FIXED_KEYS + 3 * i - 2]) == 0 then return 'ASLEEP' end
  end
end

for i = 1, count do
  local at = 7 * i - 3 -- of the message's first argument
  local identity, is_noted = identities[i], true
  if identity and string.byte(identity) == 45 then identity, is_noted = string.sub(identity, 2), false end -- a dash
  if accept_number(numbers, epochs[i], counts[i], texts[i]) and not (identity and has[identity]) then
    if identity then
      has[identity] = true
      if is_noted then fields[#fields + 1], fields[#fields + 2] = identity, texts[i] .. accepted end
    end
    local key = FIXED_KEYS + 3 * i - 2
    local run, kind, parent, body = KEYS[key], ARGV[at + 1], ARGV[at + 4], ARGV[at + 6]
    local id = string.sub(run, run_id_begins(owner))
    local header = (kind == 'start' or parent ~= '') and redis.call('LINDEX', run, 0)
    local is_child_of_parent = header and string.match(header, PARENT) == parent
    if header == false and may_sleep and KEYS[first_bucket] then
      local sleeper, digest = header_of_sleeper(KEYS[first_bucket + i - 1], id)
      if sleeper ~= '' then
        header = sleeper
        is_child_of_parent = digest == digest_of_parent(parent == '' and '-' or parent)
      end
    end
    if kind ~= 'start' then
      if parent == '' or is_child_of_parent then
        if identity then
          put_message(inbox, 'kind', kind, 'run', id, 'body', body, 'from', identity)
        else
          put_message(inbox, 'kind', kind, 'run', id, 'body', body)
        end
      end
    elseif not header then
      open_run(door, run, KEYS[key + 1], KEYS[key + 2], clock,
        id, ARGV[at + 2], ARGV[at + 3], parent, ARGV[at + 5], body)
    elseif not is_child_of_parent then
      put_message(inbox, 'kind', 'taken', 'run', id, 'body', body, 'header', parent)
    end
  end
end
local last = note_numbers(numbers, fields)
if #fields > 0 then redis.call('HSET', seen, unpack(fields)) end
return last
