-- counts: numbers in one argument, 4 bytes each, the most significant first. As digits, or as an argument each, those of
-- a small commit cost a tenth of its time.
local function unpack_counts(text)
  local bytes, counts = {string.byte(text, 1, -1)}, {}
  for at = 1, #bytes, 4 do
    counts[#counts + 1] = ((bytes[at] * 256 + bytes[at + 1]) * 256 + bytes[at + 2]) * 256 + bytes[at + 3]
  end
  return unpack(counts)
end
