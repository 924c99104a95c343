-- number: an outbox number `<epoch>-<n>` of the owner that decided the message; both parts only grow.
local function parse_number(text)
  local epoch, number = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(number)
end
local function is_newer(epoch, number, than_epoch, than_number)
  return epoch > than_epoch or (epoch == than_epoch and number > than_number)
end
