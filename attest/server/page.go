package server

import (
	"net/http"
	"strconv"

	"github.com/sealift/sealift/attest/api"
)

// pageLimit returns how many records a request wants of a list.
func pageLimit(r *http.Request) (int, *failure) {
	v := r.URL.Query().Get("limit")
	if v == "" {
		return api.MaxPage, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > api.MaxPage {
		return 0, badRequest("limit is %q, want 1 to %d", v, api.MaxPage)
	}
	return n, nil
}

// page returns at most limit of all, which has one more if there are more than
// that, and then says where the next page begins.
func page[T any](w http.ResponseWriter, all []T, limit int, name func(T) string) []T {
	if len(all) > limit {
		all = all[:limit]
		w.Header().Set(api.HeaderNext, name(all[limit-1]))
	}
	return all
}
