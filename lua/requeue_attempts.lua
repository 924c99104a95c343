#!lua flags=allow-oom
-- requeue_attempts: return a leaving worker's entries to the queue; another worker takes them under the same attempt.
--
-- Only what is still pending with this consumer, and still its step's current entry, gets a new entry at the end; a
-- revoked one is deleted. The new entry carries what the step reported last, and rings for the workers. Safe to run
-- twice: the second time the entry isn't pending any more.
--
-- KEYS   stream, steps, details
-- ARGV   group, consumer, then for each claim: entry, step, details ('' when there is nothing new)
-- RETURNS the number of new entries / WRONGTYPE key
-- @include shared/holds
-- @include shared/current_entry
-- @include shared/attempts
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group, consumer = ARGV[1], ARGV[2]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

local count = 0
for i = 3, #ARGV, 3 do
  local entry, step, reported = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local current, created, attempt, is_revoked = current_entry(steps, step)
  local mine = redis.pcall('XPENDING', stream, group, entry, entry, 1, consumer)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  if current == entry and not mine.err and mine[1] and found then
    if reported == '' then reported = redis.call('HGET', details, entry) or '' end
    drop_entry(stream, details, group, entry)
    if is_revoked then
      redis.call('HDEL', steps, step)
    else
      local fields = {}
      for n = 1, #found[2], 2 do
        if found[2][n] ~= 'details' or reported == '' then
          fields[#fields + 1], fields[#fields + 2] = found[2][n], found[2][n + 1]
        end
      end
      if reported ~= '' then fields[#fields + 1], fields[#fields + 2] = 'details', reported end
      local added = redis.call('XADD', stream, '*', unpack(fields))
      redis.call('HSET', steps, step, encode_current_entry(added, created, attempt, 'wanted'))
      count = count + 1
    end
  end
end
if count > 0 then ring_for_workers(stream) end
return count
