-- post: put messages into the inbox, for runs that are open (a retry also for one that has failed), numbered by their
-- source.
--
-- Each carries its identity (`from`): source, number and place in the post. What a client posts again, because a server
-- may have lost it, has the identity of the first time, and the number of the post that was accepted: it is there if that
-- isn't higher than the last number. The owner has noted in `seen` the identities of those that runs had taken, whose
-- transitions it has committed again. The letters for such a post begin with R. Needs shared/asleep.
local function post_all(keys, argv)
  local seen, owner = keys[1], keys[4]
  local FIXED_KEYS, count = 4, (#argv - 3) / 4
  local source, is_again, digits = argv[1], string.match(argv[2], '^(=?)(.*)$')
  local number = tonumber(digits)
  is_again = is_again ~= ''

  local inbox = open_inbox(keys[2], keys[3])
  if inbox.err then return inbox end
  local last = redis.call('HGET', seen, source)
  local last_number, last_letters
  if last then
    last_number, last_letters = string.match(last, '^(%d+) %d+ (%a*)$')
    last_number = tonumber(last_number)
    if last_number and last_number >= number and not is_again then return last_letters end
    if last_number == number and is_again and string.match(last_letters, '^R') and #last_letters == count + 1 then
      return string.sub(last_letters, 2)
    end
  end
  last_number = last_number or 0
  local stored = redis.call('HMGET', owner, 'clock', 'asleep')
  local may_sleep, has_buckets = some_sleep(stored[2]), #keys > FIXED_KEYS + count
  local letters, from = {}, {}
  for i = 1, count do
    local header = redis.call('LINDEX', keys[FIXED_KEYS + i], 0)
    if not header and may_sleep then
      if not has_buckets then return 'ASLEEP' end
      header = header_of_sleeper(keys[FIXED_KEYS + count + i], argv[4 * i + 1])
    end
    local status, created = string.match(header or '', '^(%a+) %d+ %S+ (%d+)')
    local wanted, of, is_there = argv[4 * i + 3], nil, false
    if string.find(wanted, ' ', 1, true) then
      wanted, from[i], of = string.match(wanted, '^(%d*) (%S+) (%d*)$')
      of = tonumber(of)
      is_there = of and of <= last_number or redis.call('HGET', seen, from[i])
    else
      from[i] = string.format('m:%s.%s.%d', source, digits, i)
    end
    if is_there then
      letters[i] = 'd'
    elseif not status or (wanted ~= '' and wanted ~= created) then
      letters[i] = 'm'
    elseif status == 'pending' or status == 'running' or status == 'stuck' or status == 'paused' then
      letters[i] = 'a'
    elseif status == 'failed' and argv[4 * i] == 'retry' then
      letters[i] = 'a'
    else
      letters[i] = 'e'
    end
  end
  local clock = shard_clock(argv[3], stored[1])

  for i, letter in ipairs(letters) do
    if letter == 'a' then
      put_message(inbox, 'kind', argv[4 * i], 'run', argv[4 * i + 1], 'body', argv[4 * i + 2], 'from', from[i])
    end
  end
  local joined = table.concat(letters)
  if last_number < number then
    redis.call('HSET', seen, source, string.format('%.0f %.0f %s%s', number, clock, is_again and 'R' or '', joined))
  end
  return joined
end
