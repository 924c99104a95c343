-- number: an outbox number `<epoch>-<n>`, and which of them a target has accepted from a source.
--
-- Each owner of the source numbers its messages upwards, and each (source, target) pair is in order: so the last number
-- of an owner says which of that owner's messages have been accepted. Owners are distinguished by their epoch and the
-- high bits of their numbers (streamflow/daemon/shard.py), which no two have in common, also when a failover has lost
-- an owner and the next one got its epoch again, or a lower one. So an owner that isn't known is a new one, whatever its
-- epoch is. Those with the highest epochs are remembered; one that is below them all when there are as many is old.
local OWNERS = 3 -- remembered for each source: more would make its field so long that the hash takes twice the memory
local NUMBERS_OF_OWNER = 4294967296
local function parse_number(text)
  local epoch, number = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(number)
end
local function is_newer(epoch, number, than_epoch, than_number)
  return epoch > than_epoch or (epoch == than_epoch and number > than_number)
end

local function owner_in_numbers(epoch, number, text)
  return {epoch = epoch, number = number, first = number - number % NUMBERS_OF_OWNER, text = text}
end

-- What was accepted from a source: the last numbers of its owners, highest first. `source`: its field in `seen`, and
-- `before` the one with all numbers but the highest.
local function open_numbers(source, newest, before)
  local numbers = {source = source, newest = newest or '', before = before or ''}
  local epoch, number = parse_number(numbers.newest)
  if epoch then numbers[1] = owner_in_numbers(epoch, number, newest) end
  for word in string.gmatch(numbers.before, '%S+') do
    epoch, number = parse_number(word)
    if epoch then numbers[#numbers + 1] = owner_in_numbers(epoch, number, word) end
  end
  return numbers
end

-- Of a number: what is known of its owner, or nil; and where an owner that isn't known belongs, nil if it is an old one.
local function find_owner(numbers, epoch, number)
  local at = 1
  for i = 1, #numbers do
    local known = numbers[i]
    if known.epoch == epoch and number >= known.first and number < known.first + NUMBERS_OF_OWNER then return known end
    if is_newer(known.epoch, known.number, epoch, number) then
      -- Earlier releases number without high bits, and keep one number: beside one of theirs only the epoch tells.
      if number < NUMBERS_OF_OWNER or known.first == 0 then return nil end
      at = i + 1
    end
  end
  if at > OWNERS then return nil end
  return nil, at
end

-- Whether the message of this number was accepted.
local function has_number(numbers, epoch, number)
  local known, at = find_owner(numbers, epoch, number)
  if known then return number <= known.number end
  return not at
end

-- Whether a message of this number is accepted now; if it is, the number is noted. `text`: the number as it is written.
local function accept_number(numbers, epoch, number, text)
  local known, at = find_owner(numbers, epoch, number)
  if known then
    if number <= known.number then return false end
    known.number, known.text = number, text
    return true
  end
  if not at then return false end
  table.insert(numbers, at, owner_in_numbers(epoch, number, text))
  numbers[OWNERS + 1] = nil
  return true
end

-- The fields of `seen` that have changed are added to `fields`. Returns the highest number.
local function note_numbers(numbers, fields)
  local newest, before = numbers[1] and numbers[1].text or '0-0', ''
  for i = 2, #numbers do before = before .. (i > 2 and ' ' or '') .. numbers[i].text end
  if newest ~= numbers.newest then fields[#fields + 1], fields[#fields + 2] = numbers.source, newest end
  if before ~= numbers.before then fields[#fields + 1], fields[#fields + 2] = numbers.source .. '/before', before end
  return newest
end
