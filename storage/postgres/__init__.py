"""Everything that Postgres keeps, and the statements that ask for it.

`database.py` owns the pools and turns the driver's errors into those of `hub.errors`, `migrate.py`
brings the schema up to date, and `housekeeping.py` deletes expired rows. A statement stands whole
beside its one caller, in the room of what it is about: those of photos are in `storage.objects`,
beside the store. Tools that check, copy or mend the data are in `storage.care`.
"""
