package profiles

// Suggest returns what to tell a person who wrote a name that is none of
// names: "did you mean x?", or else which names there are.
func Suggest(got string, names []string) string { return didYouMean(got, names) }
