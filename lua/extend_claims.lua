#!lua flags=allow-oom
-- extend_claims: renew a worker's claims on entries of a queue partition, and return which of them it has lost.
--
-- An entry that is pending with this very consumer, and still its step's current one, begins a new idle time; details
-- that its step has reported since are stored for the next attempt. Safe to run twice.
--
-- KEYS   stream, steps, details
-- ARGV   group, consumer, then for each claim: entry, step, details ('' when there is nothing new)
-- RETURNS a string with a letter for each claim: k (kept), r (revoked: stop it), l (lost: not ours) / WRONGTYPE key
-- @include shared/holds
-- @include shared/current_entry
local stream, steps, details = KEYS[1], KEYS[2], KEYS[3]
local group, consumer = ARGV[1], ARGV[2]

if not holds(stream, 'stream') then return redis.error_reply('WRONGTYPE ' .. stream) end
if not holds(steps, 'hash') then return redis.error_reply('WRONGTYPE ' .. steps) end
if not holds(details, 'hash') then return redis.error_reply('WRONGTYPE ' .. details) end

local letters = {}
for i = 3, #ARGV, 3 do
  local entry, reported = ARGV[i], ARGV[i + 2]
  local current, _, _, is_revoked = current_entry(steps, ARGV[i + 1])
  local mine = redis.pcall('XPENDING', stream, group, entry, entry, 1, consumer)
  local letter = 'l'
  if current == entry and not mine.err and mine[1] then
    redis.call('XCLAIM', stream, group, consumer, 0, entry, 'JUSTID')
    if reported ~= '' then redis.call('HSET', details, entry, reported) end
    letter = is_revoked and 'r' or 'k'
  end
  letters[#letters + 1] = letter
end
return table.concat(letters)
