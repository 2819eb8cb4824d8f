package datastore_test
const racerEnv = "HANOK_TEST_RACER"
func raceMain() {}
