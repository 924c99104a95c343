-- in_log: the form of a transition in a shard's log, from the bytes of the record and what the owner says of it.
--
-- As in the record; or a `cut` in its place, without large payloads; or, when the cut begins with a plus, whole, with the
-- rest of the cut as more elements of its array: what readers of the log need.
local PLUS = string.byte('+')
local SIX = '\150' -- MessagePack: an array of six elements

local function in_log(transition, cut)
  if not cut or string.byte(cut) ~= PLUS then return cut or transition end
  return SIX .. string.sub(transition, 2) .. string.sub(cut, 2)
end
