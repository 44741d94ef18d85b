package api

// A list of the operator API comes in pages: at most "limit" records, which is
// MaxPage if it is left out, and at most that. If there are more, the answer has
// HeaderNext, and "after" with that value asks for the next page.
const (
	MaxPage    = 1000
	HeaderNext = "Sealift-Next"
)
