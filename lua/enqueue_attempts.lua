#!lua flags=allow-oom
-- enqueue_attempts: accept attempts of steps, and revocations of them, from a shard's outbox into a queue partition.
--
-- The last accepted numbers of each source are kept, as in `deliver_messages`, so an attempt that is sent again changes
-- nothing. One entry is one attempt. A newer attempt replaces the one before, whose entry is deleted; so does one of a
-- run that was created later under the same id, and one of the same number: a failover has lost the decision that made
-- the first, and what was decided in its place may be another call. A revoked entry that no worker has yet is deleted;
-- one that a worker has is marked, and the worker's next `extend_claims` returns `r` for it.
--
-- KEYS   stream, seen, steps, details
-- ARGV   source, group, after, then for each message: number, kind (step or revoke), id, created, seq, attempt,
--        details, body
-- RETURNS the highest number that was accepted / GAP / WRONGTYPE key / BADNUMBER number
-- @include shared/holds
-- @include shared/number
-- @include shared/current_entry
local stream, seen, steps, details = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local source, group = ARGV[1], ARGV[2]
local count = (#ARGV - 3) / 8

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(seen, 'hash') then return redis.error_reply('WRONGTYPE ' .. seen) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end
if ARGV[3] ~= '' and not parse_number(ARGV[3]) then return redis.error_reply('BADNUMBER ' .. ARGV[3]) end
for i = 1, count do
  local number = ARGV[8 * i - 4]
  if not parse_number(number) then return redis.error_reply('BADNUMBER ' .. number) end
end
local known = redis.call('HMGET', seen, source, source .. '/before')
local numbers = open_numbers(source, known[1], known[2])
if ARGV[3] ~= '' and not has_number(numbers, parse_number(ARGV[3])) then return 'GAP' end

redis.pcall('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
for i = 1, count do
  local at = 8 * i - 4 -- of the message's first argument
  local epoch, number = parse_number(ARGV[at])
  if accept_number(numbers, epoch, number, ARGV[at]) then
    local id, seq = ARGV[at + 2], ARGV[at + 4]
    local created, attempt = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 5])
    local step = id .. '/' .. seq
    local entry, present_created, present_attempt = current_entry(steps, step)
    if ARGV[at + 1] == 'step' then
      if not entry or not is_newer(present_created, present_attempt, created, attempt) then
        if entry then drop_entry(stream, details, group, entry) end
        local added = redis.call('XADD', stream, '*', 'run', id, 'created', ARGV[at + 3], 'seq', seq,
          'attempt', ARGV[at + 5], 'details', ARGV[at + 6], 'body', ARGV[at + 7])
        redis.call('HSET', steps, step, encode_current_entry(added, created, attempt, 'wanted'))
      end
    elseif entry and not is_newer(present_created, present_attempt, created, attempt) then
      if is_pending(stream, group, entry) then
        redis.call('HSET', steps, step, encode_current_entry(entry, present_created, present_attempt, 'revoked'))
      else
        drop_entry(stream, details, group, entry)
        redis.call('HDEL', steps, step)
      end
    end
  end
end
local fields = {}
local last = note_numbers(numbers, fields)
if #fields > 0 then redis.call('HSET', seen, unpack(fields)) end
return last
